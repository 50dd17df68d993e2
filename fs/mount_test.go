package fs_test

import (
	"os"
	"testing"
)

func TestDelivery(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/1", "hello")
	w.waited()
	w.must(os.Rename(w.path("u/tmp/1"), w.path("u/new/1")))
	if got := w.waited(); got != "barrier" {
		t.Errorf("delivery waited for %q, want a barrier", got)
	}
	w.want("u/new/1", "hello")
	w.must(os.Rename(w.path("u/new/1"), w.path("u/cur/1:2,S")))
	w.want("u/cur/1:2,S", "hello")
	w.applied()
	w.want("u/cur/1:2,S", "hello")
	wantFile(t, w.tree("u/cur/1:2,S"), "hello")
	w.reopen()
	w.want("u/cur/1:2,S", "hello")
	w.want("u/tmp/1", "-")
}
