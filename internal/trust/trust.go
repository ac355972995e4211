// Package trust holds what everything that comes from outside has to pass before it is
// believed: messages of other programs, numbers in texts, addresses.
//
// Every program calls it where bytes of others come in. Its one rule: this is the only
// door. Rules that are generated from the contracts let NaN pass, and so do comparisons
// that are written by hand; a test of the house sees to it that nobody else calls either.
package trust

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Ruled is what generated code gives to a message with rules.
type Ruled interface {
	proto.Message
	ValidateAll() error
}

// Message returns which rule of its contract a message breaks: one beside a field, or
// that all of its numbers are finite and its times valid, or what its own Check says.
func Message(m Ruled) error {
	if err := m.ValidateAll(); err != nil {
		return err
	}
	if err := Finite(m); err != nil {
		return err
	}
	if c, ok := m.(interface{ Check() error }); ok {
		return c.Check()
	}
	return nil
}

// Finite returns which number of a message, or of one inside, is not finite, or which
// time or duration is none; nil: none is. It costs nothing for a message that has no such
// field.
func Finite(m proto.Message) error {
	r := m.ProtoReflect()
	if !numbered(r.Descriptor()) || !r.IsValid() {
		return nil
	}
	return finite(r)
}

// timed are the messages of times and durations.
const (
	timestamp protoreflect.FullName = "google.protobuf.Timestamp"
	duration  protoreflect.FullName = "google.protobuf.Duration"
)

// finite returns the fault with the path of its field in front.
func finite(m protoreflect.Message) (err error) {
	if name := m.Descriptor().FullName(); name == timestamp || name == duration {
		if err := m.Interface().(interface{ CheckValid() error }).CheckValid(); err != nil {
			return fmt.Errorf(": %w", err)
		}
		return nil
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if err = field(f, v); err != nil {
			err = fmt.Errorf("%s%w", f.Name(), err)
		}
		return err == nil
	})
	return err
}

// field returns the fault of one field, without its name.
func field(f protoreflect.FieldDescriptor, v protoreflect.Value) (err error) {
	switch {
	case f.IsMap():
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if err = single(f.MapValue(), v); err != nil {
				err = fmt.Errorf("[%q]%w", k.String(), err)
			}
			return err == nil
		})
		return err
	case f.IsList():
		if !counts(f) {
			return nil
		}
		for i := range v.List().Len() {
			if err := single(f, v.List().Get(i)); err != nil {
				return fmt.Errorf("[%d]%w", i, err)
			}
		}
		return nil
	default:
		return single(f, v)
	}
}

func single(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch f.Kind() {
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		if x := v.Float(); math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Errorf(": %v; must be a finite number", x)
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if !numbered(f.Message()) {
			return nil
		}
		if err := finite(v.Message()); err != nil {
			if text := err.Error(); text[0] != ':' {
				return fmt.Errorf(".%w", err)
			}
			return err
		}
	}
	return nil
}

// counts reports whether a field may hold what Finite looks for.
func counts(f protoreflect.FieldDescriptor) bool {
	switch f.Kind() {
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return true
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return numbered(f.Message())
	default:
		return false
	}
}

// Number reads a number from least to most: what other programs say with NaN, or by
// infinities, is none.
func Number(text string, least, most float64) (float64, error) {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !Within(v, least, most) {
		return 0, fmt.Errorf("%.40q; must be a number from %g to %g", strings.Clone(text), least, most) // so that text needs no memory of its own
	}
	return v, nil
}

// Nearest is Number for what is read leniently: a number beyond least or most is the nearer of
// them. ok is whether it is a number.
func Nearest(text string, least, most float64) (v float64, ok bool) {
	v, err := strconv.ParseFloat(text, 64)
	if v != v || err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false
	}
	return Clamp(v, least, most), true
}

// Within reports whether v is from least to most. NaN is not.
func Within(v, least, most float64) bool { return v >= least && v <= most }

// Clamp returns v, or the nearer of least and most where it is beyond. NaN becomes least.
func Clamp(v, least, most float64) float64 {
	if !(v > least) {
		return least
	}
	return min(v, most)
}

// Address returns why a text is not "ip:port" of one host that others can reach: whoever
// has it is connected to, or named to Envoy as a host. Loopback is: a mesh may be on one
// machine.
func Address(text string) error {
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 {
		return fmt.Errorf("%.80q; must be ip:port", text)
	}
	if what := notOfAHost(a.Addr()); what != "" {
		return fmt.Errorf("%.80q; must be the ip:port of one host, and this is %s", text, what)
	}
	return nil
}

// thisNetwork and reserved are IPv4's addresses that begin with 0, and those from 240 on
// with broadcast. embedded are IPv6's that stand for an IPv4 address, which would have to
// be judged in their place.
var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	reserved    = netip.MustParsePrefix("240.0.0.0/4")
	embedded    = []netip.Prefix{
		netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"),
	}
	compatible = netip.MustParsePrefix("::/96") // but for ::1
)

func notOfAHost(a netip.Addr) string {
	switch {
	case a.Zone() != "":
		return "one with a zone, which means nothing elsewhere"
	case a.Is4In6():
		return "IPv4 written as IPv6"
	case a.IsUnspecified() || thisNetwork.Contains(a):
		return "an unspecified one"
	case a.IsMulticast():
		return "a multicast one"
	case a.IsLinkLocalUnicast():
		return "a link-local one"
	case reserved.Contains(a):
		return "a reserved one"
	case compatible.Contains(a) && !a.IsLoopback():
		return "IPv4 written as IPv6"
	}
	for _, p := range embedded {
		if p.Contains(a) {
			return "IPv4 written as IPv6"
		}
	}
	return ""
}
