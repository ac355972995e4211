package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// pollEvery is how often a condition is asked.
const pollEvery = 50 * time.Millisecond

// final is an error that waiting longer won't mend.
type final struct{ error }

// Unwrap returns the cause.
func (f final) Unwrap() error { return f.error }

// Final marks an error of a condition as one that ends Poll and Wait at once.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return final{err}
}

// Poll asks cond every 50 ms until it returns nil or a Final error, and returns its
// last answer when the limit has passed.
func Poll(limit time.Duration, cond func() error) error {
	return PollContext(context.Background(), limit, cond)
}

// PollContext is Poll that ends with ctx at the latest.
func PollContext(ctx context.Context, limit time.Duration, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := cond()
		if f := (final{}); err == nil || errors.As(err, &f) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not within %v: %w", limit, err)
			}
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Wait fails the test unless cond returns nil within the limit; it returns how long
// that took. The failure says what was waited for, and cond's last answer.
func Wait(t testing.TB, limit time.Duration, what string, cond func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := Poll(limit, cond); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return time.Since(begin)
}

// Each calls f with 0 to n-1, by so many clients at once, and waits for all.
func Each(n, clients int, f func(i int)) {
	work := make(chan int)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range work {
				f(i)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}

// Buffer collects what processes write while tests read it. The zero value is empty.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Tail returns the end of what was written, for the log of a failed test.
func (b *Buffer) Tail() string { return tail(b.String()) }

// tailBytes bounds what is printed of each log of a failed test.
const tailBytes = 4000

func tail(s string) string {
	if len(s) <= tailBytes {
		return s
	}
	return "…" + s[len(s)-tailBytes:]
}
