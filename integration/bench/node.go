package main

import (
	"context"
	"errors"

	"slotfs/integration/scratch"
)

type node struct{}

func (n *node) pid() int                              { return 0 }
func (n *node) mount() string                         { return "" }
func (n *node) stop() error                           { return nil }
func (n *node) requests() (map[string]float64, error) { return nil, nil }

func startNodes(ctx context.Context, d *scratch.Dir, bin, name string) ([]*node, error) {
	return nil, errors.New("none")
}
