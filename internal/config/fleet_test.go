package config

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestBadFleets reads each file of testdata/badfleet, as TestBadFiles does.
func TestBadFleets(t *testing.T) {
	files, err := filepath.Glob("testdata/badfleet/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			_, err := LoadFleet(name)
			if err == nil {
				t.Fatal("took a bad file")
			}
			if diff := cmp.Diff(wanted(t, name), err.Error()); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoodFleet(t *testing.T) {
	const text = `
endpoints:
  - {address: "10.0.0.2:8000", models: [org/base, lora], type: vllm, zone: r1, slots: 128, kvEvents: {listen: "10.0.0.9:5557", topic: kv}}
  - {address: "[fd00::2]:8000", models: [base], node: n2}
  - {address: "10.0.0.3:8000", models: [x], type: vllm, tls: {ca: ca.pem}, apiKey: {file: /run/key}, headers: [{name: x-a, file: a}]}
models:
  - {name: base, tokenizer: base.json, default: true}
policy: {sessions: {header: x-chat}, rewrites: [{model: chat, to: [{model: base}, {model: org/base, weight: 3}]}]}
`
	f, err := ParseFleet(filepath.FromSlash("/etc/fleet.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	policy := newPolicy().Spec
	policy.Flow.GatewayTimeout = Duration{everyGateway}
	policy.Retries.HedgeAfter = Duration{hedgeOthers}
	policy.Sessions.Header = "x-chat"
	policy.Rewrites = []Rewrite{{Model: "chat", To: []RewriteTarget{{"base", 1}, {"org/base", 3}}}}
	want := Fleet{
		Endpoints: []Endpoint{
			{
				Address: "10.0.0.2:8000", Models: []string{"org/base", "lora"}, Type: TypeVLLM,
				Metrics: "http://10.0.0.2:8000/metrics", Node: "10.0.0.2", Zone: "r1", Slots: 128,
				KVEvents: KVEvents{Listen: "10.0.0.9:5557", Topic: "kv"},
			},
			{Address: "[fd00::2]:8000", Models: []string{"base"}, Type: TypeOpenAI, Node: "n2"},
			{
				Address: "10.0.0.3:8000", Models: []string{"x"}, Type: TypeVLLM, Node: "10.0.0.3",
				Metrics: "https://10.0.0.3:8000/metrics", TLS: EngineTLS{CA: filepath.FromSlash("/etc/ca.pem")},
				APIKey: APIKey{File: "/run/key"}, Headers: []EngineHeader{{Name: "x-a", File: filepath.FromSlash("/etc/a")}},
			},
		},
		Models: []FleetModel{{Name: "base", Tokenizer: filepath.FromSlash("/etc/base.json"), Default: true}},
		Policy: policy,
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("fleet (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"base", "lora", "org/base", "x"}, f.ModelNames()); diff != "" {
		t.Errorf("models (-want +got):\n%s", diff)
	}
	if f.DefaultModel() != "base" || f.Tokenizer("lora") != "" || f.Tokenizer("base") == "" {
		t.Errorf("default %q, tokenizer %q", f.DefaultModel(), f.Tokenizer("base"))
	}
}

func FuzzParseFleet(f *testing.F) {
	f.Add([]byte("endpoints: [{address: \"10.0.0.2:8000\", models: [m], type: vllm}]\nmodels: [{name: m}]"))
	f.Add([]byte("endpoints: &a [*a]"))
	f.Add([]byte("endpoints: [{address: \"a.b:80\", models: [m], type: vllm, kvEvents: {connect: \"a.b:1\"}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		fleet, err := ParseFleet("fleet.yaml", text)
		if err == nil && (len(fleet.Endpoints) == 0 || fleet.DefaultModel() == "") {
			t.Errorf("took %q as %+v", text, fleet)
		}
		for _, e := range fleet.Endpoints {
			if name, _ := e.Host(); name != "" {
				e = e.At(netip.MustParseAddr("10.0.0.1"))
			}
			if !isAddress(e.Address) || e.KVEvents.Connect != "" && !isAddress(e.KVEvents.Connect) {
				t.Errorf("took %q as %+v", text, e)
			}
		}
	})
}
