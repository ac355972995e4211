package supervise

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
)

// A server that runs elsewhere is asked for its health every remoteEvery, with
// remotePatience for an answer. It counts as lost when it refuses connections, or has
// not answered remoteFails times in a row.
const (
	remoteEvery    = 500 * time.Millisecond
	remotePatience = 3 * time.Second
	remoteFails    = 3
)

// attach returns a child for an external server.
func attach(run uint64, p backend.Process, now time.Time) *child {
	done := make(chan struct{})
	c := &child{run: run, remote: true, done: done, active: now, checked: now}
	ready := p.Ready
	p.Ready = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, remotePatience)
		defer cancel()
		return ready(ctx)
	}
	c.spec = p
	var once sync.Once
	c.lose = func(why string) {
		once.Do(func() {
			c.exit = why
			close(done)
		})
	}
	return c
}

// watch asks the server until it is lost or given up.
func (c *child) watch(ctx context.Context) {
	tick := time.NewTicker(remoteEvery)
	defer tick.Stop()
	for fails := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-c.done:
			return
		case <-tick.C:
		}
		err := c.spec.Ready(ctx)
		switch {
		case err == nil:
			fails = 0
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			fails = remoteFails
		default:
			fails++
		}
		if fails >= remoteFails {
			c.lose("does not answer: " + err.Error())
			return
		}
	}
}
