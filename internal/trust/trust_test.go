package trust

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestAddress(t *testing.T) {
	tests := []struct{ text, want string }{
		{"10.0.0.1:80", ""}, {"127.0.0.1:1", ""}, {"[::1]:1", ""}, {"[2001:db8::1]:65535", ""}, {"[fd00::1]:80", ""},
		{"", "must be ip:port"}, {"localhost:80", "must be ip:port"}, {"10.0.0.1", "must be ip:port"}, {"10.0.0.1:0", "must be ip:port"},
		{"127.1:80", "must be ip:port"}, {"0x7f000001:80", "must be ip:port"}, {"010.0.0.1:80", "must be ip:port"}, {"10.0.0.1:65536", "must be ip:port"},
		{"0.0.0.0:80", "unspecified"}, {"[::]:80", "unspecified"}, {"0.1.2.3:80", "unspecified"},
		{"224.0.0.1:80", "multicast"}, {"239.255.255.255:80", "multicast"}, {"[ff02::1]:80", "multicast"},
		{"169.254.169.254:80", "link-local"}, {"[fe80::1]:80", "link-local"}, {"[fe80::1%eth0]:80", "zone"}, {"[2001:db8::1%eth0]:80", "zone"},
		{"255.255.255.255:80", "reserved"}, {"240.0.0.1:80", "reserved"},
		{"[::ffff:169.254.169.254]:80", "IPv4 written as IPv6"}, {"[::ffff:10.0.0.1]:80", "IPv4 written as IPv6"}, {"[::169.254.169.254]:80", "IPv4 written as IPv6"},
		{"[64:ff9b::169.254.169.254]:80", "IPv4 written as IPv6"}, {"[2002:a9fe:a9fe::1]:80", "IPv4 written as IPv6"},
	}
	for _, tt := range tests {
		err := Address(tt.text)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Address(%q) = %v, want %q", tt.text, err, tt.want)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("10.0.0.1:80")
	f.Add("[fe80::1%eth0]:80")
	f.Fuzz(func(t *testing.T, text string) {
		if Address(text) != nil {
			return
		}
		a, err := netip.ParseAddrPort(text)
		if ip := a.Addr(); err != nil || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || ip.Is4In6() || ip.Zone() != "" {
			t.Errorf("%q is taken", text)
		}
	})
}

func TestNumber(t *testing.T) {
	for text, want := range map[string]float64{"0": 0, "1e3": 1000, "0.5": 0.5, "1000": 1000} {
		if got, err := Number(text, 0, 1000); err != nil || got != want {
			t.Errorf("Number(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "NaN", "nan", "Inf", "-inf", "+Inf", "1e400", "-1", "1000.1", "x", "1 ", "0x"} {
		if got, err := Number(text, 0, 1000); err == nil {
			t.Errorf("Number(%q) = %v", text, got)
		}
	}
}

func FuzzNumber(f *testing.F) {
	f.Add("1e3")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := Number(text, -5, 1e15); err == nil && !(v >= -5 && v <= 1e15) {
			t.Errorf("Number(%q) = %v", text, v)
		}
	})
}

func TestClamp(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 1: 1, 5: 5, 9: 9, 10: 9, math.Inf(1): 9, math.Inf(-1): 1} {
		if got := Clamp(v, 1, 9); got != want {
			t.Errorf("Clamp(%v) = %v, want %v", v, got, want)
		}
	}
	if got := Clamp(math.NaN(), 1, 9); got != 1 {
		t.Errorf("Clamp(NaN) = %v", got)
	}
}

// TestFinite looks into maps, lists, oneofs and messages that hold themselves.
func TestFinite(t *testing.T) {
	value := func(v float64) *structpb.Value { return structpb.NewNumberValue(v) }
	in := func(v *structpb.Value) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{value(1), v}})}}
	}
	if err := Finite(in(value(2))); err != nil {
		t.Error(err)
	}
	want := `fields["a"].list_value.values[1].number_value: NaN; must be a finite number`
	if err := Finite(in(value(math.NaN()))); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := Finite(in(value(math.Inf(-1)))); err == nil {
		t.Error("an infinity is taken")
	}
	if err := Finite(&durationpb.Duration{Seconds: math.MaxInt64}); err == nil {
		t.Error("a duration of ages is taken")
	}
	if err := Finite((*structpb.Struct)(nil)); err != nil {
		t.Error(err)
	}
}
