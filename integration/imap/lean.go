package imap

import (
	"fmt"
	"strconv"
)

// What follows asks for no more than a plain mail program does: nothing here
// enables CONDSTORE or makes the server stat a message for its INTERNALDATE.
// Measurements use it.

// SelectPlain is SELECT without CONDSTORE.
func (c *Client) SelectPlain(name string) error {
	_, err := c.command(nil, "SELECT %s", quote(name))
	return err
}

// UIDs asks for UID and FLAGS of all messages of the open mailbox, of which
// there must be at least one, and returns the UIDs.
func (c *Client) UIDs() ([]uint64, error) {
	replies, err := c.command(nil, "FETCH 1:* (UID FLAGS)")
	var uids []uint64
	for _, r := range replies {
		if len(r) == 3 && r[1] == "FETCH" {
			list, _ := r[2].([]any)
			uids = append(uids, message(0, list).UID)
		}
	}
	return uids, err
}

// Body returns the bytes of one message of the open mailbox.
func (c *Client) Body(uid uint64) ([]byte, error) {
	replies, err := c.command(nil, "UID FETCH %s (BODY.PEEK[])", strconv.FormatUint(uid, 10))
	if err != nil {
		return nil, err
	}
	for _, r := range replies {
		if len(r) == 3 && r[1] == "FETCH" {
			list, _ := r[2].([]any)
			if m := message(0, list); m.Body != nil {
				return m.Body, nil
			}
		}
	}
	return nil, fmt.Errorf("uid %d: no such message", uid)
}
