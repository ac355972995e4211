package stream

import (
	"testing"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

func TestRecord(t *testing.T) {
	f := newFleet(2)
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
	record(index, &l, 210, e, epoch)
	if a, b, c := matches(11), matches(12), matches(21); a != 100 || b != 200 || c != 210 {
		t.Errorf("after the request: %d %d %d", a, b, c)
	}
	recordAnswer(index, &l, &pick.Usage{Prompt: 210, Completion: 40}, e, epoch)
	if a, b, c := matches(11), matches(12), matches(21); a != 100 || b != 250 || c != 250 {
		t.Errorf("after the answer: %d %d %d", a, b, c)
	}
	recordResponse(index, f.model, "resp_1", 250, e, epoch)
	if n := matches(responseKey(f.model, []byte("resp_1"))); n != 250 {
		t.Errorf("of the response: %d", n)
	}
	record(index, new(located), 5, e, epoch) // nothing is known of it
}
