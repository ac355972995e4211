package llamacpp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// cutAddress splits "ip:port".
func cutAddress(address string) (host, port string, err error) {
	return net.SplitHostPort(address)
}

// listens reports whether somebody on this machine listens on address. It asks
// the kernel: a connection would take the one that a shard serves at a time.
func listens(address string) (bool, error) {
	want, err := netip.ParseAddrPort(address)
	if err != nil {
		return false, err
	}
	table := "/proc/net/tcp"
	if want.Addr().Is6() {
		table = "/proc/net/tcp6"
	}
	f, err := os.Open(table)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return findListener(f, want)
}

// findListener reads a table in the form of proc(5), /proc/net/tcp.
func findListener(r io.Reader, want netip.AddrPort) (bool, error) {
	const listen = "0A"
	lines := bufio.NewScanner(r)
	lines.Scan() // the heading
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || f[3] != listen {
			continue
		}
		got, err := parseSocket(f[1])
		if err != nil {
			return false, err
		}
		if got.Port() == want.Port() && (got.Addr() == want.Addr() || got.Addr().IsUnspecified()) {
			return true, nil
		}
	}
	return false, lines.Err()
}

// parseSocket reads "0100007F:C351": 32-bit words in host byte order (little
// endian here), then the port.
func parseSocket(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	p, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, fmt.Errorf("socket %.80q: not an address", s)
	}
	b := make([]byte, 0, 16)
	for ; host != ""; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("socket %.80q: %w", s, err)
		}
		b = append(b, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr, uint16(p)), nil
}
