package translate

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
)

// TestForeignGolden is a fleet of our own replicas and of endpoints that somebody else
// runs, of which one serves two models.
func TestForeignGolden(t *testing.T) {
	f, err := config.Parse("test.yaml", []byte(`
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: /models/smollm2.gguf, replicas: 2}
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: ours}
spec: {weights: /models/ours.gguf}
---
apiVersion: millrace.dev/v1alpha1
kind: Endpoints
metadata: {name: pool}
spec:
  endpoints:
    - {address: "10.0.0.2:8000", models: [smollm2, org/lora], type: vllm, node: n2, zone: z}
    - {address: "10.0.0.3:8000", models: [smollm2]}
    - {address: "10.0.0.4:8000", models: [smollm2], tls: {ca: /tls/ca.pem, cert: /tls/client.pem, key: /tls/client.key}}
    - {address: "10.0.0.5:8000", models: [org/lora], tls: {serverName: engine.example}}
    - {address: "10.0.0.6:8000", models: [smollm2], tls: {skipVerify: true}}
`))
	if err != nil {
		t.Fatal(err)
	}
	d := desired.Next(nil, f, nil)
	now := time.Unix(1e9, 0)
	x := fleet.New(0, now)
	x.Step(now, fleet.Desired{Published: desired.Published{State: d}})
	x.Step(now, fleet.Observed{Observation: &probe.Observation{
		Address: "10.0.0.2:8000", Epoch: 5, Speed: probe.Speed{Prefill: 900, Decode: 100}, Slots: 64, KVTokens: 1000,
		Sample:   &scrape.Sample{Running: 2, KV: 0.5, Requests: 3, Prompt: 90, Cached: 30, Output: 9, PrefillSeconds: 1, DecodeSeconds: 2},
		Adapters: &scrape.Adapters{Most: 2, Running: []string{"org/lora"}},
	}})
	x.Step(now, fleet.Observed{Observation: &probe.Observation{Address: "10.0.0.3:8000", State: probe.NotReady, Err: scrape.StatusError(503)}})
	all := Fleet(d, x.Decide(now))
	static, err := Static(Site{Gateway: "127.0.0.1:8080"}, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	all[ClusterType] = static[ClusterType]
	all[wire.ModelType] = static[wire.ModelType]
	all[SecretType] = static[SecretType]
	if faults := Faults(all); len(faults) > 0 {
		t.Errorf("Envoy's own rules: %v", faults)
	}
	golden(t, "foreign", document(t, all))

	// What only we serve is as if nobody else were there.
	alone, err := Static(Site{Gateway: "127.0.0.1:8080"}, desired.Next(nil, config.File{Models: f.Models[1:2], Policy: f.Policy}, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	name := EnginesCluster("ours")
	if diff := cmp.Diff(alone[ClusterType][name], static[ClusterType][name].(*clusterv3.Cluster), protocmp.Transform()); diff != "" {
		t.Errorf("the cluster of a model of ours (-alone +beside others):\n%s", diff)
	}
}
