package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// file mirrors the TOML. Durations, sizes and the like are strings here and
// are parsed afterwards, so that their errors name the key.
type file struct {
	Node       string `toml:"node"`
	ClusterDir string `toml:"cluster_dir"`
	Gossip     struct {
		Bind      string   `toml:"bind"`
		Advertise string   `toml:"advertise"`
		Join      []string `toml:"join"`
	} `toml:"gossip"`
	Replication struct {
		Listen          string `toml:"listen"`
		Advertise       string `toml:"advertise"`
		Cert            string `toml:"cert"`
		Key             string `toml:"key"`
		ReplicaTimeout  string `toml:"replica_timeout"`
		FailoverTimeout string `toml:"failover_timeout"`
		FailoverPause   string `toml:"failover_pause"`
	} `toml:"replication"`
	Admin struct {
		Socket string `toml:"socket"`
		Mode   string `toml:"mode"`
		Group  string `toml:"group"`
	} `toml:"admin"`
	Metrics struct {
		Listen string `toml:"listen"`
	} `toml:"metrics"`
	Log struct {
		Level  string `toml:"level"`
		Format string `toml:"format"`
	} `toml:"log"`
	Scrub struct {
		Cycle string `toml:"cycle"`
		Rate  string `toml:"rate"`
	} `toml:"scrub"`
	Register fileRegister `toml:"register"`
	Slots    []fileSlot   `toml:"slot"`
}

type fileSlot struct {
	Store             string   `toml:"store"`
	Data              string   `toml:"data"`
	Mount             string   `toml:"mount"`
	Layout            string   `toml:"layout"`
	Durability        string   `toml:"durability"`
	OnReplicaLoss     string   `toml:"on_replica_loss"`
	LogMax            string   `toml:"log_max"`
	Reserve           string   `toml:"reserve"`
	ProtectMountPoint *bool    `toml:"protect_mount_point"`
	Xattrs            *bool    `toml:"xattrs"`
	OnPromote         []string `toml:"on_promote"`
	OnDemote          []string `toml:"on_demote"`
	OnDegraded        []string `toml:"on_degraded"`
	HookTimeout       string   `toml:"hook_timeout"`
	BrakeShare        string   `toml:"brake_share"`
	BrakeWindow       string   `toml:"brake_window"`
	BrakeKeep         string   `toml:"brake_keep"`
	BrakeMin          *int     `toml:"brake_min"`
}

// Parse reads the config at path and checks all that can be told from it
// alone. The error is Errors, or an *Error if the file cannot be read.
func Parse(path string) (*Config, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find config: %w", err)
	}
	text, err := os.ReadFile(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: abs, Reason: "there is no such file", Err: err,
			Remedy: "Name the config with --config or $" + EnvPath + ", or make one with slotfs init DIR."}
	}
	if err != nil {
		return nil, &Error{File: abs, Reason: err.Error(), Err: err}
	}
	return ParseText(abs, text)
}

// ParseText is Parse for a file that has been read; path must be absolute.
func ParseText(path string, text []byte) (*Config, error) {
	var f file
	dec := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, decodeErrors(path, err)
	}
	b := &builder{file: path}
	c := b.build(&f)
	if len(b.errs) > 0 {
		return nil, b.errs
	}
	return c, nil
}

// decodeErrors turns the decoder's errors into ours, with line and key.
func decodeErrors(path string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var out Errors
		for i := range strict.Errors {
			e := &strict.Errors[i]
			row, _ := e.Position()
			out = append(out, &Error{File: path, Key: strings.Join(e.Key(), "."), Err: e,
				Reason: fmt.Sprintf("unknown key in line %d", row),
				Remedy: "Correct or remove it; slotfs init --print-example shows every key."})
		}
		return out
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		return Errors{{File: path, Key: strings.Join(de.Key(), "."), Err: de,
			Reason: fmt.Sprintf("line %d, column %d: %s", row, col, strings.TrimPrefix(de.Error(), "toml: ")),
			Remedy: "slotfs init --print-example shows the right form of every key."}}
	}
	return Errors{{File: path, Reason: err.Error(), Err: err}}
}

// Keys lists every key there is, as "section.key".
func Keys() []string {
	var keys []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			name := prefix + f.Tag.Get("toml")
			switch {
			case f.Type.Kind() == reflect.Struct:
				walk(name+".", f.Type)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				walk(name+".", f.Type.Elem())
			default:
				keys = append(keys, name)
			}
		}
	}
	walk("", reflect.TypeFor[file]())
	return keys
}
