package loopback_test

import (
	"net"
	"sync"
	"testing"

	"slotfs/integration/loopback"
)

// TestTake: many users at one time, and the same port for each.
func TestTake(t *testing.T) {
	const users = 200
	var wg sync.WaitGroup
	for range users {
		wg.Go(func() {
			h, err := loopback.Take()
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { h.Close() })
			l, err := net.Listen("tcp", h.Addr(17946))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { l.Close() })
		})
	}
	wg.Wait()
}

// TestHeld: nobody else gets an address that is held, and after Close it is
// free.
func TestHeld(t *testing.T) {
	h, err := loopback.Take()
	if err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("tcp", h.Addr(29999)); err == nil {
		l.Close()
		t.Error("a held address was taken again")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", h.Addr(29999))
	if err != nil {
		t.Fatalf("an address that was given back: %v", err)
	}
	l.Close()
}
