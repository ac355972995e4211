package config

import (
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEndpoints(t *testing.T) {
	f, err := Load("testdata/good/endpoints.yaml")
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string {
		full, err := filepath.Abs("testdata/good/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return full
	}
	want := []Endpoints{{APIVersion: APIVersion, Kind: KindEndpoints, Metadata: Metadata{Name: "pool"}, Spec: EndpointsSpec{Endpoints: []Endpoint{
		{
			Address: "10.0.0.2:8000", Models: []string{"qwen", "org/lora"}, Type: TypeVLLM, Metrics: "http://10.0.0.2:8000/metrics",
			Node: "n2", Slots: 64, KVEvents: KVEvents{Connect: "10.0.0.2:5557"},
		},
		{
			Address: "10.0.0.3:8000", Models: []string{"llama", "org/lora"}, Type: "tensorrtllm",
			Metrics: "http://10.0.0.3:8000/prometheus/metrics", Node: "10.0.0.3",
		},
		{Address: "10.0.0.4:8000", Models: []string{"llama"}, Type: TypeOpenAI, Node: "10.0.0.4"},
		{
			Address: "10.0.0.5:8000", Models: []string{"llama"}, Type: TypeVLLM, Node: "10.0.0.5",
			Metrics: "https://10.0.0.5:8000/metrics", Health: "https://10.0.0.5:9000/live",
			TLS:     EngineTLS{CA: in("ca.pem"), Cert: in("client.pem"), Key: in("client.key"), ServerName: "engine.example"},
			APIKey:  APIKey{File: in("engine.key"), Header: "x-api-key", Requests: true},
			Headers: []EngineHeader{{Name: "x-tenant", Value: "a"}, {Name: "x-token", Env: "TOKEN"}},
		},
	}}}}
	if diff := cmp.Diff(want, f.Endpoints); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	var names []string
	for _, m := range f.Models {
		names = append(names, m.Metadata.Name)
		if implied := m.Metadata.Name == "org/lora"; m.Spec.Implied != implied || (m.Spec.Replicas > 0) != (m.Metadata.Name == "qwen") {
			t.Errorf("model %s: implied %v, %d replicas", m.Metadata.Name, m.Spec.Implied, m.Spec.Replicas)
		}
	}
	if diff := cmp.Diff([]string{"qwen", "llama", "org/lora"}, names); diff != "" {
		t.Errorf("models (-want +got):\n%s", diff)
	}
	if m := f.DefaultModel().Metadata.Name; m != "qwen" {
		t.Errorf("default %q", m)
	}
	b, err := Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("testdata/good/again.yaml", b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f, again); diff != "" {
		t.Errorf("file after Marshal and Parse (-want +got):\n%s", diff)
	}
}

// TestEndpointsAlone needs no Model: what endpoints serve is all that there is.
func TestEndpointsAlone(t *testing.T) {
	f, err := Parse("f.yaml", []byte(`{apiVersion: millrace.dev/v1alpha1, kind: Endpoints, metadata: {name: e}, spec: {endpoints: [{address: "10.0.0.2:80", models: [m, n]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Models) != 2 || f.DefaultModel().Metadata.Name != "m" || f.Models[0].Spec.Replicas != 0 || f.Models[0].Spec.TokenizerFile() != "" {
		t.Errorf("models %+v", f.Models)
	}
}

// TestEndpointEqual finds a difference in every field.
func TestEndpointEqual(t *testing.T) {
	full := Endpoint{
		Address: "a", Models: []string{"m"}, Type: "t", Metrics: "u", Node: "n", Zone: "z", Slots: 1, KVEvents: KVEvents{Topic: "k"}, TemplateArgs: "{}",
		Health: "h", TLS: EngineTLS{CA: "c"}, APIKey: APIKey{Env: "E"}, Headers: []EngineHeader{{Name: "n"}},
	}
	same := full
	same.Models = []string{"m"}
	if !full.Equal(same) {
		t.Error("equal ones differ")
	}
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Fatalf("the test leaves %s out", v.Type().Field(i).Name)
		}
		other := full
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if full.Equal(other) {
			t.Errorf("no difference by %s", v.Type().Field(i).Name)
		}
	}
}
