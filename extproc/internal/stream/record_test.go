package stream

import (
	"slices"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

func TestRecord(t *testing.T) {
	f := newFleet(2)
	others := &peers{}
	f.table.Policy.Peers = others
	index, e := f.table.Policy.Prefixes, f.model.Endpoints[1]
	chain := []prefix.Link{{Key: 11, Tokens: 100}, {Key: 12, Tokens: 200}}
	l := located{chain: chain, named: 21}
	matches := func(k session.Key) uint32 {
		m, ok := index.Get(k, epoch)
		if !ok || m.Cache != e.KV.ID() {
			return 0
		}
		return m.Tokens
	}
	record(f.table.Policy, &l, 210, e, epoch)
	if a, b, c := matches(11), matches(12), matches(21); a != 100 || b != 200 || c != 210 {
		t.Errorf("after the request: %d %d %d", a, b, c)
	}
	recordAnswer(f.table.Policy, &l, &pick.Usage{Prompt: 210, Completion: 40}, e, epoch)
	if a, b, c := matches(11), matches(12), matches(21); a != 100 || b != 250 || c != 250 {
		t.Errorf("after the answer: %d %d %d", a, b, c)
	}
	recordResponse(f.table.Policy, f.model, "resp_1", 250, e, epoch)
	if n := matches(responseKey(f.model, []byte("resp_1"))); n != 250 {
		t.Errorf("of the response: %d", n)
	}
	record(f.table.Policy, new(located), 5, e, epoch) // nothing is known of it

	// Whoever records the same knows the same.
	other := prefix.New(1000, time.Hour)
	for _, p := range others.placed {
		other.Record(p, e.KV, epoch)
	}
	for _, k := range []session.Key{11, 12, 21, responseKey(f.model, []byte("resp_1"))} {
		want, _ := index.Get(k, epoch)
		if got, ok := other.Get(k, epoch); !ok || got.Cache != want.Cache || got.Tokens != want.Tokens {
			t.Errorf("key %d: %+v, want %+v", k, got, want)
		}
	}
	if want := []string{e.Address, e.Address, e.Address, e.Address}; !slices.Equal(others.at, want) {
		t.Errorf("placed at %v, want %v", others.at, want)
	}
}

// peers remembers what is published to others.
type peers struct {
	at     []string
	placed []prefix.Placement
}

func (p *peers) Place(address string, what prefix.Placement) {
	what.Chain = slices.Clone(what.Chain)
	p.at, p.placed = append(p.at, address), append(p.placed, what)
}
