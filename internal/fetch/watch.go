package fetch

import (
	"context"
	"os"
	"sync/atomic"
	"time"
)

// watched writes a body to the part, and ends it when it comes too slowly.
type watched struct {
	// Constant after start.
	d      *download
	out    *os.File
	limits Limits
	cancel context.CancelCauseFunc

	// Of the writer alone.
	done   int64 // bytes of the file that are there
	failed error // why the disk takes no more

	// Atomic.
	came atomic.Int64 // bytes since the start
}

// start watches until the returned function is called, which waits.
func (w *watched) start() (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(w.limits.Stall)
		defer tick.Stop()
		before := int64(0)
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			now := w.came.Load()
			if now-before < w.limits.MinBytes {
				w.cancel(errSlow)
				return
			}
			before = now
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.done += int64(n)
	w.came.Add(int64(n))
	if err != nil {
		w.failed = err
		return n, err
	}
	if w.d.f.Progress != nil {
		w.d.f.Progress(w.done, w.d.total())
	}
	return n, nil
}
