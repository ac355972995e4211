package stream

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"millrace.dev/millrace/extproc/internal/pick"
)

// subset is the endpoints that a gateway's metadata allows, while it is read. The
// protocol has a list of "ip:port"; filters that make metadata of a header can only
// write a text, with commas. Any other value allows nobody.
type subset struct {
	// given is whether there is one at all.
	given bool
	// listed is whether the value is a list so far: another list adds to it.
	listed bool
	hosts  []string
}

// value reads a structpb.Value; first: the first one of an entry.
func (s *subset) value(first bool, b []byte) error {
	if first {
		*s = subset{given: true}
	}
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		switch {
		case int(num) >= len(valueTypes) || typ != valueTypes[num]:
			r.skip(num, typ)
			continue
		case num == valueText:
			s.hosts = appendHosts(nil, string(r.bytes()))
		case num == valueList && s.listed:
			r.fail(s.list(r.bytes()))
		case num == valueList:
			s.hosts = nil
			r.fail(s.list(r.bytes()))
		default:
			s.hosts = nil
			r.skip(num, typ)
		}
		s.listed = num == valueList
	}
	return r.err
}

// list reads a structpb.ListValue.
func (s *subset) list(b []byte) error {
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if num != 1 || typ != protowire.BytesType {
			r.skip(num, typ)
			continue
		}
		host, err := textValue("", r.bytes())
		r.fail(err)
		s.hosts = appendHosts(s.hosts, host)
	}
	return r.err
}

// appendHosts appends the hosts of a text. One without a port is whatever its port.
func appendHosts(hosts []string, text string) []string {
	for host := range strings.SplitSeq(text, ",") {
		if host = strings.TrimSpace(host); host != "" {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// only returns the hosts in order, for pick; nil: all are allowed.
func (s *subset) only() pick.Subset {
	if !s.given {
		return nil
	}
	only := append(make(pick.Subset, 0, len(s.hosts)), s.hosts...)
	for i, host := range only {
		// An IPv6 address without a port has no brackets in pick.
		if bare, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(bare, "]") {
			only[i] = strings.TrimSuffix(bare, "]")
		}
	}
	slices.Sort(only)
	return slices.Compact(only)
}
