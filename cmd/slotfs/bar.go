package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// sayEvery is the time between two lines of progress without a terminal.
const sayEvery = 10 * time.Second

// newBar makes a progress bar with rate and remaining time, of bytes or of things;
// nil if w is no terminal.
func newBar(w io.Writer, what string, bytes bool) *progressbar.ProgressBar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return progressbar.NewOptions64(1, progressbar.OptionSetWriter(f), progressbar.OptionShowBytes(bytes),
		progressbar.OptionShowTotalBytes(bytes), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true),
		progressbar.OptionFullWidth(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription(what))
}
