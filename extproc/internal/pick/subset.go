package pick

import (
	"net"
	"slices"
)

// Subset is the endpoints that may be named, in order: "ip:port", or an ip alone for
// whatever port. nil allows all, an empty one nobody.
type Subset []string

// allows reports whether an endpoint may be named.
func (s Subset) allows(address string) bool {
	if s == nil {
		return true
	}
	if _, ok := slices.BinarySearch(s, address); ok {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, ok := slices.BinarySearch(s, host)
	return ok
}
