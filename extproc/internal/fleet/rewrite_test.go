package fleet

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

func TestRewritesFromXds(t *testing.T) {
	s := full(t)
	said := &fleetpb.PolicyState{
		SessionHeader: "x", Candidates: 1, CandidatesCritical: 1, DefaultPriority: "standard",
		Rewrites: policy.Rewrites([]config.Rewrite{{Model: "chat", To: []config.RewriteTarget{{Model: "m", Weight: 9}, {Model: "n", Weight: 1}}}}),
	}
	apply(t, s, say(wire.PolicyType, resource("default", "2", said)))
	want := map[string]*pick.Rewrite{"chat": {Model: "chat", To: []pick.Target{{Model: "m", Weight: 9}, {Model: "n", Weight: 1}}}}
	if diff := cmp.Diff(want, s.table().Policy.Rewrites); diff != "" {
		t.Errorf("rewrites (-want +got):\n%s", diff)
	}
	said.Rewrites[0].To[0].Weight = 0
	if err := s.apply(say(wire.PolicyType, resource("default", "3", said)), time.Now()); err == nil || !strings.Contains(err.Error(), "Weight") {
		t.Errorf("a weight of 0: %v, want it refused", err)
	}
	said.Rewrites = nil
	apply(t, s, say(wire.PolicyType, resource("default", "4", said)))
	if got := s.table().Policy.Rewrites; got != nil {
		t.Errorf("rewrites are left: %v", got)
	}
}
