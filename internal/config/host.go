package config

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/trust"
)

// maxNames bounds the host names of a fleet: each is looked up again and again.
const maxNames = 256

// engineHost is a host's name as DNS has it, of at most 253 characters. Its last label is
// no number, so that a mistyped address is none.
var engineHost = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)

// Host returns the host name and port of an endpoint whose address is a name, "name:port",
// which only the file of a fleet may have. An empty name: the address is ip:port.
func (e Endpoint) Host() (name string, port uint16) { return named(e.Address) }

func named(address string) (name string, port uint16) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 || i > 253 || !engineHost.MatchString(address[:i]) || len(address)-i-1 > len("65535") {
		return "", 0
	}
	n, err := strconv.ParseUint(address[i+1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0
	}
	return address[:i], uint16(n)
}

// At returns the endpoint at one of the addresses that its host name has. What is said of
// the name is said of each of them.
func (e Endpoint) At(ip netip.Addr) Endpoint {
	name, port := e.Host()
	e.Address = netip.AddrPortFrom(ip, port).String()
	for _, page := range []*secret.URL{&e.Metrics, &e.Health} {
		if u, err := url.Parse(string(*page)); err == nil && u.Hostname() == name && name != "" {
			u.Host = onAddress(ip, u.Port())
			*page = secret.URL(u.String())
		}
	}
	if e.TLS.On() && e.TLS.ServerName == "" {
		e.TLS.ServerName = strings.TrimSuffix(name, ".")
	}
	if host, events := named(e.KVEvents.Connect); host != "" {
		e.KVEvents.Connect = netip.AddrPortFrom(ip, events).String()
	}
	e.complete()
	return e
}

// onAddress is the host of a URL; port may be empty.
func onAddress(ip netip.Addr, port string) string {
	host := ip.String()
	if ip.Is6() {
		host = "[" + host + "]"
	}
	if port != "" {
		host += ":" + port
	}
	return host
}

// validateIn is validate for the file of a fleet, where an address may be a host name's.
func (e Endpoint) validateIn(at string, r *rules) {
	name, _ := e.Host()
	if name == "" {
		switch err := trust.Address(e.Address); {
		case !isAddress(e.Address):
			r.broken(at+".address", "%.80q; must be ip:port, or name:port", e.Address)
		case err != nil:
			r.broken(at+".address", "%s", err)
		}
		e.validateRest(at, r)
		return
	}
	if e.KVEvents.Listen != "" {
		r.broken(at+".kvEvents.listen", "%q; engines behind a host name are not distinguished by it: give their addresses as ip:port, or have extproc connect", e.KVEvents.Listen)
		e.KVEvents.Listen = ""
	}
	if host, _ := named(e.KVEvents.Connect); e.KVEvents.Connect != "" {
		if host != name {
			r.broken(at+".kvEvents.connect", "%.80q; must be %s:port, as the endpoint's address is that name", e.KVEvents.Connect, name)
		}
		e.KVEvents.Connect = "127.0.0.1:1" // the other rules are those of any address
	}
	e.validateRest(at, r)
}

// validateNames checks how many host names the endpoints have.
func validateNames(all []Endpoint, r *rules) {
	var names []string
	for _, e := range all {
		if name, _ := e.Host(); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n > maxNames {
		r.broken("endpoints", "%d host names; must be ≤ %d", n, maxNames)
	}
}
