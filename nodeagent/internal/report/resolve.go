package report

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// resolveEvery is how often a name is resolved, resolveFor how long that may take.
	resolveEvery = 2 * time.Second
	resolveFor   = 5 * time.Second
	// mostXDS bounds the addresses of xds, against an answer that is not about xds at all.
	mostXDS = 16
)

// resolver returns the addresses of a host.
type resolver func(ctx context.Context, host string) ([]netip.Addr, error)

func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// follow keeps a stream to every xds until ctx ends. Of a name it asks for the addresses
// again and again: one that comes gets a stream, and one that goes loses it when it
// ends. An answer that can't be had, or is empty, changes nothing.
func (r *Reporter) follow(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	host, port, err := net.SplitHostPort(r.cfg.XDS)
	if _, ip := netip.ParseAddr(host); err != nil || ip == nil || host == "localhost" {
		r.reach(ctx, []string{r.cfg.XDS}, &tasks)
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	for {
		addrs, err := r.addresses(ctx, host, port)
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

// addresses returns those of a name, sorted, each once.
func (r *Reporter) addresses(ctx context.Context, host, port string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveFor)
	defer cancel()
	found, err := r.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	all := make([]string, 0, len(found))
	for _, a := range found {
		all = append(all, net.JoinHostPort(a.Unmap().WithZone("").String(), port))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(len(all), mostXDS)], nil
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
