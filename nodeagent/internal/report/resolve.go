package report

import (
	"context"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/resolve"
)

// follow keeps a stream to every xds until ctx ends. Of a name it asks for the addresses
// again and again: one that comes gets a stream, and one that goes loses it when it
// ends. An answer that can't be had, or is empty, changes nothing.
func (r *Reporter) follow(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	host, port, several := resolve.Name(r.cfg.XDS)
	if !several {
		r.reach(ctx, []string{r.cfg.XDS}, &tasks)
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(resolve.Every)
	defer tick.Stop()
	for {
		addrs, err := resolve.Addresses(ctx, r.resolve, host, port)
		r.deliver(ctx, Resolved{err})
		if len(addrs) > 0 {
			r.reach(ctx, addrs, &tasks)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// reach makes these the addresses of xds: it starts the streams that are not there yet.
func (r *Reporter) reach(ctx context.Context, addrs []string, tasks *sync.WaitGroup) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr, out := range r.streams {
		if !slices.Contains(addrs, addr) && !out.leaving() {
			close(out.left)
		}
	}
	for _, addr := range addrs {
		if r.streams[addr] != nil {
			continue // one that comes back while its stream ends is found by the next answer
		}
		out := &outbox{reports: make(chan outgoing, 1), left: make(chan struct{})}
		r.streams[addr] = out
		tasks.Go(func() {
			r.speak(ctx, addr, out)
			r.mu.Lock()
			delete(r.streams, addr)
			r.mu.Unlock()
			r.deliver(ctx, Gone{addr})
		})
	}
}

// leaving reports whether the address is not one of xds any more.
func (o *outbox) leaving() bool {
	select {
	case <-o.left:
		return true
	default:
		return false
	}
}
