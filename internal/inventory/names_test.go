package inventory

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
)

// zone is a fake DNS.
type zone struct {
	// mu guards the fields below.
	mu        sync.Mutex
	addresses map[string][]string
	err       error
}

// set has a name stand for other addresses.
func (z *zone) set(name string, addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addresses[name] = addresses
}

func (z *zone) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var all []netip.Addr
	for _, a := range z.addresses[name] {
		all = append(all, netip.MustParseAddr(a))
	}
	return all, z.err
}

func addresses(entries []Entry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.Address)
	}
	return all
}

func TestNames(t *testing.T) {
	z := &zone{addresses: map[string][]string{}}
	specs := []config.Endpoint{
		{Address: "a:80", Models: []string{"m"}}, {Address: "10.0.0.9:80", Models: []string{"m"}}, {Address: "b:80", Models: []string{"m"}},
	}
	n := NewNames(z.lookup, slog.New(slog.DiscardHandler))
	n.Want(specs)
	if len(n.Faults()) != 2 || n.Asked() {
		t.Errorf("names that nobody has looked up are known: %v", n.Faults())
	}
	steps := []struct {
		name   string
		a, b   []string
		err    error
		want   []string
		faults int
	}{
		{"all addresses, sorted, one each", []string{"10.0.0.3", "10.0.0.1", "10.0.0.1"}, []string{"::ffff:10.0.0.2"}, nil,
			[]string{"10.0.0.9:80", "10.0.0.1:80", "10.0.0.3:80", "10.0.0.2:80"}, 0},
		{"IPv4 before IPv6", []string{"fd00::1", "10.0.0.1"}, []string{"fd00::2"}, nil, []string{"10.0.0.9:80", "10.0.0.1:80", "[fd00::2]:80"}, 0},
		{"DNS fails: what was known holds", nil, nil, errors.New("server misbehaving"), []string{"10.0.0.9:80", "10.0.0.1:80", "[fd00::2]:80"}, 2},
		{"no addresses: the same", nil, nil, nil, []string{"10.0.0.9:80", "10.0.0.1:80", "[fd00::2]:80"}, 2},
		{"addresses of no host are refused", []string{"169.254.169.254", "224.0.0.1", "10.0.0.5"}, []string{"0.0.0.0"}, nil,
			[]string{"10.0.0.9:80", "10.0.0.5:80", "[fd00::2]:80"}, 2},
		{"an address of two is the first one's", []string{"10.0.0.9", "10.0.0.5"}, []string{"10.0.0.5"}, nil, []string{"10.0.0.9:80", "10.0.0.5:80"}, 0},
	}
	for _, s := range steps {
		z.addresses["a"], z.addresses["b"], z.err = s.a, s.b, s.err
		n.LookUp(t.Context())
		if diff := cmp.Diff(s.want, addresses(n.Entries(specs))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
		if len(n.Faults()) != s.faults || n.Changed() || !n.Asked() {
			t.Errorf("%s: faults %v, want %d", s.name, n.Faults(), s.faults)
		}
	}
	n.Want(specs[1:])
	if got := addresses(n.Entries(specs[1:])); len(got) != 2 || n.Faults()["a"] != nil {
		t.Errorf("without a: %v", got)
	}
}

func TestNamesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{addresses: map[string][]string{"a": {"10.0.0.1"}}}
		specs := []config.Endpoint{{Address: "a:80", Models: []string{"m"}}}
		n := NewNames(z.lookup, slog.New(slog.DiscardHandler))
		n.Want(specs)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.Run(ctx) }()
		synctest.Wait()
		if got := addresses(n.Entries(specs)); !cmp.Equal(got, []string{"10.0.0.1:80"}) {
			t.Errorf("at once: %v", got)
		}
		z.set("a", "10.0.0.2")
		time.Sleep(namesEvery)
		synctest.Wait()
		if got := addresses(n.Entries(specs)); !cmp.Equal(got, []string{"10.0.0.2:80"}) {
			t.Errorf("after %s: %v", namesEvery, got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
