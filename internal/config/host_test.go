package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEndpointsOfHostNames(t *testing.T) {
	const text = `
endpoints:
  - {address: "gpu_1.internal.:8000", models: [m], type: vllm, kvEvents: {connect: "gpu_1.internal.:5557"}}
  - {address: "gpu2:8000", models: [m], type: llamacpp, metrics: "http://gpu2:9000/m"}
  - {address: "gpu3:8000", models: [m], type: llamacpp, metrics: "https://metrics/of/gpu3", node: rack}
  - {address: "gpu4.:8000", models: [m], type: llamacpp, health: "https://gpu4.:9000/h", tls: {enabled: true}}
  - {address: "gpu5:8000", models: [m], tls: {serverName: engine.example}}
  - {address: "10.0.0.1:8000", models: [m]}
`
	f, err := ParseFleet("fleet.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")
	want := []Endpoint{
		{Address: "10.0.0.7:8000", Models: []string{"m"}, Type: "vllm", Metrics: "http://10.0.0.7:8000/metrics", Node: "10.0.0.7", KVEvents: KVEvents{Connect: "10.0.0.7:5557"}},
		{Address: "[fd00::7]:8000", Models: []string{"m"}, Type: "llamacpp", Metrics: "http://[fd00::7]:9000/m", Node: "fd00::7"},
		{Address: "10.0.0.7:8000", Models: []string{"m"}, Type: "llamacpp", Metrics: "https://metrics/of/gpu3", Node: "rack"},
		{Address: "10.0.0.7:8000", Models: []string{"m"}, Type: "llamacpp", Metrics: "https://10.0.0.7:8000/metrics", Health: "https://10.0.0.7:9000/h", Node: "10.0.0.7", TLS: EngineTLS{Enabled: true, ServerName: "gpu4"}},
		{Address: "10.0.0.7:8000", Models: []string{"m"}, Type: "openai", Node: "10.0.0.7", TLS: EngineTLS{ServerName: "engine.example"}},
	}
	got := []Endpoint{f.Endpoints[0].At(v4), f.Endpoints[1].At(v6), f.Endpoints[2].At(v4), f.Endpoints[3].At(v4), f.Endpoints[4].At(v4)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("At (-want +got):\n%s", diff)
	}
	if name, port := f.Endpoints[0].Host(); name != "gpu_1.internal." || port != 8000 {
		t.Errorf("Host() = %q, %d", name, port)
	}
	if name, _ := f.Endpoints[5].Host(); name != "" {
		t.Errorf("10.0.0.1 is the name %q", name)
	}
}

// TestAFleetHasHosts puts addresses in the file of a fleet that are nobody's.
func TestAFleetHasHosts(t *testing.T) {
	for address, want := range map[string]string{
		"169.254.169.254:80": "a link-local one", "[fe80::1]:80": "a link-local one", "224.0.0.1:80": "a multicast one", "[ff02::1]:80": "a multicast one",
		"0.0.0.0:80": "an unspecified one", "[::]:80": "an unspecified one", "0.1.2.3:80": "an unspecified one", "255.255.255.255:80": "a reserved one",
		"[::ffff:10.0.0.1]:80": "must be ip:port", "[fe80::1%eth0]:80": "must be ip:port", "10.0.0.1:0": "must be ip:port", "127.0.0.1:80": "", "[::1]:80": "", "10.0.0.1:80": "",
	} {
		_, err := ParseFleet("fleet.yaml", fmt.Appendf(nil, "endpoints: [{address: %q, models: [m]}]", address))
		if (err != nil) != (want != "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "endpoints[0].address")) {
			t.Errorf("%s: %v; want %q", address, err, want)
		}
	}
}

func TestHostNamesAreBounded(t *testing.T) {
	var text strings.Builder
	text.WriteString("endpoints:\n")
	for i := range maxNames + 1 {
		fmt.Fprintf(&text, "  - {address: \"gpu%d:80\", models: [m]}\n", i)
	}
	_, err := ParseFleet("fleet.yaml", []byte(text.String()))
	if want := "fleet.yaml:1: endpoints: 257 host names; must be ≤ 256"; err == nil || err.Error() != want {
		t.Errorf("%v; want %s", err, want)
	}
}
