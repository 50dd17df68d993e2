package register

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// gRPC tries a connection again and again, and of what went wrong it tells no
// more than that there was no answer in time. That does not help somebody who
// has named the wrong file. So whoever got no answer looks once more, by hand.

// lookAgain is the least time between two looks at one endpoint.
const lookAgain = 3 * time.Second

// diagnose notes what is wrong with an endpoint that failed with err, if it is
// something that an operator can mend. An error that came after the asker had
// gone says something only if it is etcd's word.
func (e *Etcd) diagnose(p *endpoint, err error, gone bool) {
	e.mu.Lock()
	again := gone || e.closed || time.Since(p.looked) < lookAgain
	if !again {
		p.looked = time.Now()
	}
	e.mu.Unlock()
	why := denied(p.url, err)
	if why == nil {
		if again || e.options.TLS == nil {
			return
		}
		why = e.handshake(p.url)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.why = why
}

// knownLocked is what is wrong with an endpoint; nil if nothing is known.
func (e *Etcd) knownLocked() error {
	for _, p := range e.endpoints {
		if p.why != nil {
			return p.why
		}
	}
	return nil
}

// denied explains what etcd said about the user.
func denied(url string, err error) error {
	switch err := rpctypes.Error(innermost(err)); {
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Errorf("%s does not accept the user or the password: see register.user and register.password_file: %w", url, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%s denies the user what slotfs needs, which is to read and write below /slotfs/: %w", url, err)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("%s wants a user: see register.user and register.password_file: %w", url, err)
	}
	return nil
}

// innermost is the error that etcd's client returned.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// handshake connects to an endpoint as the client does, and says which side
// does not accept the other's certificate; nil if both do, or if nobody is there.
func (e *Etcd) handshake(endpoint string) error {
	ctx, cancel := context.WithTimeout(e.ctx, attempt)
	defer cancel()
	addr, keys := endpoint, [2]string{}
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" { // an external etcd
		addr, keys = u.Host, [2]string{"; see register.ca", "; see register.cert and register.key"}
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	defer raw.Close()
	config := e.options.TLS.Clone()
	config.NextProtos = []string{"h2"}
	if host, _, err := net.SplitHostPort(addr); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	conn := tls.Client(raw, config)
	ours := conn.HandshakeContext(ctx)
	if err = ours; err == nil {
		// With TLS 1.3 the server looks at our certificate after that.
		conn.SetDeadline(time.Now().Add(attempt))
		_, err = conn.Read(make([]byte, 1))
	}
	var network net.Error
	switch isNetwork := errors.As(err, &network); {
	case alert(err):
		return fmt.Errorf("%s does not accept our certificate%s: %w", endpoint, keys[1], err)
	case ours != nil && !isNetwork && !errors.Is(err, io.EOF):
		return fmt.Errorf("the certificate of %s is not accepted here%s: %w", endpoint, keys[0], err)
	}
	return nil
}

// alert is whether the other side of a TLS connection sent err.
func alert(err error) bool {
	var told *net.OpError
	return errors.As(err, &told) && told.Op == "remote error"
}
