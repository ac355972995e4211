package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/trust"
)

// How host names are looked up.
const (
	// namesEvery is between two lookups of one: Go's resolver does not say how long an
	// answer holds, and this is the least that people use for what moves.
	namesEvery = 5 * time.Second
	// lookupWait is how long a lookup may take, and lookups how many run at a time.
	lookupWait = 2 * time.Second
	lookups    = 16
	// maxAddresses bounds the addresses of one name.
	maxAddresses = 1024
)

// Lookup returns all addresses of a host name.
type Lookup func(ctx context.Context, name string) ([]netip.Addr, error)

// LookupBy returns a Lookup by the DNS server at ip:port; by none: as this machine does
// it, its file of hosts included.
func LookupBy(server string) Lookup {
	r := &net.Resolver{PreferGo: true} // it ends with its ctx; the C library's does not
	if server != "" {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
	}
	return func(ctx context.Context, name string) ([]netip.Addr, error) { return r.LookupNetIP(ctx, "ip", name) }
}

// Names keeps what the host names of endpoints stand for. What a name stood for last holds
// while it can't be looked up, or stands for nothing: whoever is still there answers
// probes.
type Names struct {
	// Constant after NewNames.
	lookup Lookup
	log    *slog.Logger
	wake   chan struct{} // holds one: others are wanted

	// mu guards the fields below. It is not held while names are looked up.
	mu      sync.Mutex
	known   map[string]*known // by name
	changed bool              // whether addresses have, since Entries
}

// known is what is known of one name.
type known struct {
	addresses []netip.Addr // sorted
	err       error        // why what it stands for now is not known; nil: it is
}

// NewNames returns what knows no names yet.
func NewNames(lookup Lookup, log *slog.Logger) *Names {
	return &Names{lookup: lookup, log: log, wake: make(chan struct{}, 1), known: map[string]*known{}}
}

// Want makes the host names of these endpoints those that are looked up. If Run runs, new
// ones are at once.
func (n *Names) Want(all []config.Endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := map[string]*known{}
	for _, e := range all {
		if name, _ := e.Host(); name != "" {
			wanted[name] = n.known[name]
			if wanted[name] == nil {
				wanted[name] = &known{err: errUnasked}
			}
		}
	}
	n.known = wanted
	select {
	case n.wake <- struct{}{}:
	default: // it has yet to look
	}
}

var errUnasked = errors.New("not looked up yet")

// Run looks the names up, again and again, until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	t := time.NewTicker(namesEvery)
	defer t.Stop()
	for {
		n.LookUp(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-t.C:
		}
	}
}

// LookUp looks all names up once.
func (n *Names) LookUp(ctx context.Context) {
	n.mu.Lock()
	var names []string
	for name := range n.known {
		names = append(names, name)
	}
	n.mu.Unlock()
	var wait sync.WaitGroup
	places := make(chan struct{}, lookups)
	for _, name := range names {
		places <- struct{}{}
		wait.Go(func() {
			defer func() { <-places }()
			addresses, err := n.one(ctx, name)
			if ctx.Err() == nil {
				n.take(name, addresses, err)
			}
		})
	}
	wait.Wait()
}

// one looks a name up: its IPv4 addresses, or those of IPv6 where it has none. A machine
// that has both kinds is one machine.
func (n *Names) one(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	found, err := n.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	var v4, v6 []netip.Addr
	for _, a := range found {
		a = a.Unmap()
		if bad := trust.Address(netip.AddrPortFrom(a, 1).String()); bad != nil {
			err = fmt.Errorf("it stands for %s, which is no address of a host that others reach", a)
			continue
		}
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	v4 = slices.Compact(v4)
	if len(v4) > maxAddresses {
		err = fmt.Errorf("it stands for %d addresses; the first %d are taken", len(v4), maxAddresses)
		v4 = v4[:maxAddresses]
	}
	if len(v4) == 0 && err == nil {
		err = errors.New("it stands for no address")
	}
	return v4, err
}

// take takes in what came of a lookup.
func (n *Names) take(name string, addresses []netip.Addr, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.known[name]
	if k == nil {
		return // nobody wants it any more
	}
	if err != nil && (k.err == nil || k.err.Error() != err.Error()) {
		n.log.Warn("host name not found, what it stood for holds", "name", name, "error", err)
	}
	k.err = err
	if len(addresses) == 0 || slices.Equal(addresses, k.addresses) {
		return
	}
	n.log.Info("host name found", "name", name, "addresses", len(addresses))
	k.addresses, n.changed = addresses, true
}

// Asked reports whether all names have been looked up once, whatever came of it.
func (n *Names) Asked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range n.known {
		if errors.Is(k.err, errUnasked) {
			return false
		}
	}
	return true
}

// Changed reports whether Entries returns others than before.
func (n *Names) Changed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Entries returns the endpoints that there are: each address of a host name is one. An
// address that several stand for is the first one's, those that are written down first.
func (n *Names) Entries(all []config.Endpoint) []Entry {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changed = false
	entries := make([]Entry, 0, len(all))
	seen := map[string]bool{}
	add := func(e config.Endpoint) {
		if !seen[e.Address] && len(entries) < config.MaxEndpoints {
			seen[e.Address] = true
			entries = append(entries, Entry{Endpoint: e})
		}
	}
	for _, e := range all {
		if name, _ := e.Host(); name == "" {
			add(e)
		}
	}
	for _, e := range all {
		name, _ := e.Host()
		if k := n.known[name]; k != nil {
			for _, a := range k.addresses {
				add(e.At(a))
			}
		}
	}
	return entries
}

// Faults returns, by name, why it is not known what names stand for now.
func (n *Names) Faults() map[string]error {
	n.mu.Lock()
	defer n.mu.Unlock()
	faults := map[string]error{}
	for name, k := range n.known {
		if k.err != nil {
			faults[name] = k.err
		}
	}
	return faults
}
