package stream

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/wire"
)

// TestTenantsOfDifferentKinds has values of the same bytes be one tenant only where they mean the
// same: who writes another's key, or the name of its key, into a header that anybody may send is
// not that one.
func TestTenantsOfDifferentKinds(t *testing.T) {
	key, line, err := keys.New("alice")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := keys.Open(slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	// Each policy with what its clients may send, by what it means. The core is the same: a
	// policy may change while it runs.
	f := newFleet(1, func(t *pick.Table) { t.Policy.Picker, t.Policy.Flow = true, &flow.Policy{} })
	tenant := func(header string, required *keys.Files, pairs ...string) uint64 {
		f.core.Require(required)
		f.picker.Publish(tableWith(f, header))
		head := headOf(t, f, pairs...)
		if head.Tenant == 0 {
			t.Fatalf("%q names no tenant", pairs)
		}
		return head.Tenant
	}
	means := map[string][]uint64{
		"a key":            {tenant("", nil, "authorization", "Bearer alice"), tenant("", nil, "x-api-key", "alice"), tenant("x-api-key", nil, "x-api-key", "alice")},
		"the name of one":  {tenant("", files, "authorization", "Bearer "+key), tenant("", files, "x-api-key", key)},
		"a header's value": {tenant("x-tenant", nil, "x-tenant", "alice"), tenant("x-tenant", files, "authorization", "Bearer "+key, "x-tenant", "alice")},
		"who is to have a fair share": {
			tenant("", nil, wire.FairnessHeader, "alice"), tenant("", files, wire.OldFairnessHeader, "alice"),
			tenant("", nil, "authorization", "Bearer alice", wire.FairnessHeader, "alice"),
			tenant("", files, wire.FairnessHeader, "alice", "authorization", "Bearer "+key),
			tenant("x-tenant", nil, "x-tenant", "alice", wire.FairnessHeader, "alice"),
		},
	}
	of := map[uint64]string{}
	for what, ids := range means {
		for _, id := range ids {
			if id != ids[0] {
				t.Errorf("%s is two tenants", what)
			}
			if other := of[id]; other != "" && other != what {
				t.Errorf("%s is the tenant of %s", what, other)
			}
			of[id] = what
		}
	}
}

// tableWith returns a table of f's whose policy has tenants by a header; empty: by API keys.
func tableWith(f *fleet, header string) *pick.Table {
	t := *f.picker.Table()
	t.Policy.Flow = &flow.Policy{TenantHeader: header}
	return &t
}
