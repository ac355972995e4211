package ads

import (
	"log/slog"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/translate"
)

// TestRefusalsAreKeptByResource: a later push of other resources that is taken says
// nothing about the one that was refused.
func TestRefusalsAreKeptByResource(t *testing.T) {
	w := newWatcher(slog.New(slog.DiscardHandler), newMetrics(prometheus.NewRegistry()))
	push := func(typ, nonce string, names ...string) {
		r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: nonce}
		for _, n := range names {
			r.Resources = append(r.Resources, &discoveryv3.Resource{Name: n})
		}
		w.response(1, nil, r)
	}
	answer := func(typ, nonce, fault string) {
		r := &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "gateway"}, TypeUrl: typ, ResponseNonce: nonce}
		if fault != "" {
			r.ErrorDetail = &status.Status{Message: fault}
		}
		if err := w.request(1, r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, names ...string) {
		t.Helper()
		var got []string
		for _, r := range w.refusals() {
			got = append(got, r.Resource)
		}
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("%s: refused (-want +got):\n%s", what, diff)
		}
	}
	const typ = translate.ClusterType
	answer(typ, "", "") // the first request
	push(typ, "1", "engines/a", "engines/b")
	if !w.busy([]string{typ}) || w.busy([]string{wire.PolicyType}) {
		t.Error("a push that is not answered keeps its type busy, and no other")
	}
	answer(typ, "1", "bad cluster engines/b")
	want("the one that the reason names", "engines/b")
	push(typ, "2", "engines/c")
	answer(typ, "2", "")
	want("another is taken", "engines/b")
	push(typ, "3", "engines/a", "engines/d")
	answer(typ, "3", "no")
	want("a reason that names none", "engines/a", "engines/b", "engines/d")
	if n := len(w.conditions()); n != 3 {
		t.Errorf("%d conditions, want 3: of different reasons, in the order of names", n)
	}
	push(typ, "4", "engines/b")
	answer(typ, "4", "")
	want("it is taken", "engines/a", "engines/d")
	w.removed(typ, []string{"engines/d"})
	want("it is no more", "engines/a")
	push(wire.EndpointType, "5", "10.0.0.1:1")
	answer(wire.EndpointType, "5", "no")
	want("of very many nobody knows which", "engines/a", "")
	push(wire.EndpointType, "6", "10.0.0.2:1")
	answer(wire.EndpointType, "6", "")
	want("the next of them is taken", "engines/a")
}
