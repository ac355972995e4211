package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"millrace.dev/millrace/internal/resolve"
)

func TestName(t *testing.T) {
	for target, want := range map[string]bool{
		"xds.millrace.svc:7100": true, "xds:7100": true,
		"10.0.0.1:7100": false, "[::1]:7100": false, "localhost:7100": false, "xds": false, "": false,
	} {
		if _, _, ok := resolve.Name(target); ok != want {
			t.Errorf("Name(%q): %t, want %t", target, ok, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	of := func(all ...string) resolve.Lookup {
		return func(context.Context, string) (found []netip.Addr, _ error) {
			for _, a := range all {
				found = append(found, netip.MustParseAddr(a))
			}
			return found, nil
		}
	}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("10.0.1.%d", i))
	}
	tests := []struct {
		name   string
		lookup resolve.Lookup
		want   []string
	}{
		{"sorted, each once", of("10.0.0.2", "10.0.0.1", "10.0.0.2"), []string{"10.0.0.1:7100", "10.0.0.2:7100"}},
		{"one of IPv6, one written as such", of("fe80::1%eth0", "::ffff:10.0.0.1"), []string{"10.0.0.1:7100", "[fe80::1]:7100"}},
		{"none", of(), []string{}},
	}
	for _, tt := range tests {
		got, err := resolve.Addresses(t.Context(), tt.lookup, "xds", "7100")
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
	if got, err := resolve.Addresses(t.Context(), of(many...), "xds", "7100"); err != nil || len(got) != 16 {
		t.Errorf("of 40 addresses: %d, %v, want 16", len(got), err)
	}
	broken := errors.New("no answer")
	if _, err := resolve.Addresses(t.Context(), func(context.Context, string) ([]netip.Addr, error) { return nil, broken }, "xds", "7100"); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
}
