package sender

import (
	"errors"
	"fmt"

	"slotfs/integration/mailbox"
)

// ErrRefused is wrapped when a server that works says no.
var ErrRefused = errors.New("refused")

// LMTP delivers to a user of a node's mail server, with a connection for each
// message. From the moment on that the message itself is under way, anything
// but a 250 leaves its fate open.
func LMTP(node string, server mailbox.Server, user string) Target {
	return Target{Node: node, Deliver: func(key string, data []byte) error {
		c, err := server.OpenLMTP(hopeless)
		if err != nil {
			return err
		}
		defer c.Close()
		replies, err := c.Deliver("sender@example.org", []string{user}, data)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		if !replies[0].OK() {
			return fmt.Errorf("%w: %w: %s", ErrUnknown, ErrRefused, replies[0])
		}
		return nil
	}}
}
