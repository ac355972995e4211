package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIstio(t *testing.T) {
	f, err := Load("testdata/good/istio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Istio{
		TLS: TLSIstioMutual,
		Gateways: []IstioGatewayRef{
			{Name: "public", Namespace: "ingress", API: KubernetesGateway, Mode: ModeEnvoyFilter, Hosts: []string{"llm.example.com", "*.llm.example.com"}},
			{Name: "old", API: IstioGateway, Mode: ModeEnvoyFilter, Selector: map[string]string{"istio": "ingressgateway"}},
			{Name: "pools", API: KubernetesGateway, Mode: ModeInferencePool},
		},
		Sidecars: IstioSidecars{Enabled: true, Namespaces: []string{"team-a", "team-b"}, Selector: map[string]string{"app.kubernetes.io/part-of": "chat"}},
	}
	if diff := cmp.Diff(want, f.Policy.Spec.Istio); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !f.Policy.Spec.Istio.On() || Default().Policy.Spec.Istio.On() {
		t.Error("On() must say whether any Envoy is to be configured")
	}
	checkRoundTrip(t, f)
}
