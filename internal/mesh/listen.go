package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/proc"
)

// resolve returns the "ip:port" that an address stands for: a host may be a name of this
// machine, or missing, which is every interface.
func resolve(addr string) (string, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", fmt.Errorf("port %q; must be 0 to 65535", text)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := netip.ParseAddr(host)
	if err == nil {
		return netip.AddrPortFrom(ip, uint16(port)).String(), nil
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return "", err
	}
	// IPv4 first: clients that are given a name try it, too.
	slices.SortStableFunc(ips, func(a, b net.IP) int { return len(b.To4()) - len(a.To4()) })
	return net.JoinHostPort(ips[0].String(), text), nil
}

// checkListen returns the address with a real port, and an error if somebody
// listens there already. Envoy opens it later with SO_REUSEPORT, which would
// share the port with another Envoy without a word.
func checkListen(addr string) (string, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", err
	}
	if ap.Port() == 0 {
		ports, err := proc.FreePorts(1)
		if err != nil {
			return "", err
		}
		ap = netip.AddrPortFrom(ap.Addr(), uint16(ports[0]))
	}
	ln, err := net.Listen("tcp", ap.String())
	if err == nil {
		return ap.String(), ln.Close()
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = &obs.Hint{Err: err, Next: "choose another address with -listen, or 127.0.0.1:0 for any free port"}
	}
	return "", err
}

// freePorts returns n free ports without that of addr.
func freePorts(n int, addr string) ([]int, error) {
	taken, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	ports, err := proc.FreePorts(n + 1)
	if err != nil {
		return nil, err
	}
	ports = slices.DeleteFunc(ports, func(p int) bool { return p == int(taken.Port()) })
	return ports[:n], nil
}

// reachable returns an address that this machine can connect to, for one that
// may be a wildcard.
func reachable(listen string) string {
	ap, err := netip.ParseAddrPort(listen)
	if err != nil || !ap.Addr().IsUnspecified() {
		return listen
	}
	host := "127.0.0.1"
	if ap.Addr().Is6() {
		host = "::1"
	}
	return net.JoinHostPort(host, fmt.Sprint(ap.Port()))
}
