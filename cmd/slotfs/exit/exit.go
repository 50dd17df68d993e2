// Package exit has the exit codes of the slotfs command. They are part of its
// interface: scripts and service managers may rely on them, so a number never
// changes its meaning.
//
//	0  done
//	1  any other error
//	2  wrong use of the command line
//	3  the config was refused
//	4  a data directory was refused (missing, of another store, newer format, in use)
//	5  a mount was refused (mount point missing, not empty, in use, no FUSE)
//	6  the network or the cluster refused (address in use, wrong key, name taken twice)
//	7  slotfs is not running, or its admin socket cannot be reached
//	8  the operation was refused in the present state (role, epoch, divergence)
//	9  check, verify, ledger --verify or evidence verify found differences;
//	   adopt or undelete could not take all
//	10 it wants --yes; nothing was changed
//	11 a signed list is not as it was signed
//
// slotfs scrub has codes of its own, made for who runs it at night: 0 clean, 1
// everything found was repaired, 2 unrepaired damage, 3 it could not run.
package exit

import "errors"

// Code is an exit code.
type Code int

// The codes; the package comment says what they mean.
const (
	OK Code = iota
	General
	Usage
	Config
	Data
	Mount
	Network
	NotRunning
	Refused
	Differences
	Unconfirmed
	Forged
)

// Error is an error that decides the exit code.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// ExitCode implements Coder.
func (e *Error) ExitCode() Code { return e.Code }

// Coder is an error that knows its exit code.
type Coder interface {
	error
	ExitCode() Code
}

// With makes err exit with code; nil stays nil.
func With(code Code, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

// Of is the exit code for err.
func Of(err error) Code {
	var c Coder
	switch {
	case err == nil:
		return OK
	case errors.As(err, &c):
		return c.ExitCode()
	default:
		return General
	}
}
