package config

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"text/template"
)

//go:embed example.toml
var exampleText string

// Values are what differs between one written config and another.
type Values struct {
	Node            string
	GossipBind      string
	GossipAdvertise string
	Join            []string
	Listen          string
	Advertise       string
	Socket          string
	Store           string
	Data            string
	Mount           string

	// Of an embedded register; without members there is none.
	Members         []string
	RegisterListen  string
	RegisterClients string
	RegisterData    string
	Witness         bool // no slot
}

// ExampleValues are those of the example for print.
func ExampleValues() Values {
	return Values{
		Node:       "n1",
		GossipBind: "0.0.0.0:7946",
		Join:       []string{"192.0.2.2:7946"},
		Listen:     "0.0.0.0:7947",
		Socket:     "/run/slotfs/slotfs.sock",
		Store:      "mail1",
		Data:       "/var/lib/slotfs/mail1",
		Mount:      "/srv/mail1",
	}
}

// Example is the commented config with v filled in.
func Example(v Values) (string, error) {
	t, err := template.New("slotfs.toml").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(exampleText)
	if err != nil {
		return "", fmt.Errorf("parse example config: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, v); err != nil {
		return "", fmt.Errorf("fill in example config: %w", err)
	}
	return b.String(), nil
}
