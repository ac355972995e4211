// Package resolve finds all addresses of a name that stands for several, as that of a
// headless Service does for every xds.
//
// Used by nodeagent and extproc, which have a stream to each of them. Its one rule: it
// remembers nothing. Whoever asks stays with what he has while an answer can't be had.
package resolve

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// Every is how often a name is to be resolved, wait how long that may take.
	Every = 2 * time.Second
	wait  = 5 * time.Second
	// most bounds the addresses of a name, against an answer that is not about it at all.
	most = 16
)

// Lookup returns the addresses of a host.
type Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

// DNS is the Lookup of this machine.
func DNS(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// Name splits "host:port" whose host is a name that may stand for several; ok is false if it
// is an address, this machine, or nothing of the kind.
func Name(target string) (host, port string, ok bool) {
	host, port, err := net.SplitHostPort(target)
	_, ip := netip.ParseAddr(host)
	return host, port, err == nil && ip != nil && host != "localhost"
}

// Addresses returns those of a host, each as "ip:port", sorted and once, 16 at most. There
// may be none.
func Addresses(ctx context.Context, lookup Lookup, host, port string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	found, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	all := make([]string, 0, len(found))
	for _, a := range found {
		all = append(all, net.JoinHostPort(a.Unmap().WithZone("").String(), port))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(len(all), most)], nil
}
