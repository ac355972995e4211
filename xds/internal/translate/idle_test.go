package translate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
)

// TestEnvoyClosesIdleConnectionsFirst holds that no cluster keeps a connection, on which
// nothing is asked, for longer than its server may: what is sent while a server closes one is
// lost, and is one of the two engines after which a request is not tried again.
func TestEnvoyClosesIdleConnectionsFirst(t *testing.T) {
	site, state := full(t)
	f, err := config.Parse("test.yaml", []byte(`
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: /models/smollm2.gguf}
---
apiVersion: millrace.dev/v1alpha1
kind: Endpoints
metadata: {name: pool}
spec: {endpoints: [{address: "10.0.0.2:8000", models: [smollm2, other]}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	foreign := desired.Next(nil, f, nil)
	for name, d := range map[string]*desired.State{"ours": state, "foreign": foreign} {
		all, err := clusters(site, d)
		if err != nil {
			t.Fatal(err)
		}
		guests := map[string]*clusterv3.Cluster{"guest pickers": GuestPickers(1, "x")}
		for _, m := range d.Models {
			guests["guest "+m.Name], guests["guest that halts "+m.Name] = GuestEngines(d, m.Name), GuestHalts(d, m.Name)
		}
		for cluster, m := range all {
			guests[cluster] = m.(*clusterv3.Cluster)
		}
		for cluster, c := range guests {
			var o httpv3.HttpProtocolOptions
			if err := c.GetTypedExtensionProtocolOptions()[httpOptions].UnmarshalTo(&o); err != nil {
				t.Fatalf("%s, %s: %v", name, cluster, err)
			}
			want := wire.OurIdle
			switch {
			case strings.HasSuffix(cluster, "pickers"), cluster == extprocCluster, cluster == tracesCluster:
				want = 0 // gRPC's servers keep all
			case name == "foreign":
				want = wire.ClientIdle
			}
			if got := o.GetCommonHttpProtocolOptions().GetIdleTimeout().AsDuration(); got != want {
				t.Errorf("%s, %s: keeps an idle connection for %v, want %v", name, cluster, got, want)
			}
		}
	}
}

// TestTheStandaloneEnvoyClosesIdleConnectionsFirst holds the same of the Envoy without xds.
func TestTheStandaloneEnvoyClosesIdleConnectionsFirst(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "envoy", "standalone.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Static struct {
			Clusters []struct {
				Name    string `json:"name"`
				Options map[string]struct {
					Common struct {
						Idle string `json:"idle_timeout"`
					} `json:"common_http_protocol_options"`
				} `json:"typed_extension_protocol_options"`
			} `json:"clusters"`
		} `json:"static_resources"`
	}
	if err := yaml.Unmarshal(text, &conf); err != nil {
		t.Fatal(err)
	}
	if len(conf.Static.Clusters) == 0 {
		t.Fatal("no cluster")
	}
	for _, c := range conf.Static.Clusters {
		want := wire.ClientIdle.String()
		if c.Name == extprocCluster {
			want = ""
		}
		if got := c.Options[httpOptions].Common.Idle; got != want {
			t.Errorf("%s: idle_timeout %q, want %q", c.Name, got, want)
		}
	}
}
