package translate

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
)

func TestClustersOfOurProgramsAreTLS(t *testing.T) {
	picker, err := extproc([]string{"127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	spans, err := traces("127.0.0.1:2")
	if err != nil {
		t.Fatal(err)
	}
	others := engines("engines/both")
	others.TypedExtensionProtocolOptions = protocol(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}},
	}, 0)
	all := map[string]proto.Message{extprocCluster: picker, tracesCluster: spans, "engines/ours": engines("engines/ours"), "engines/both": others}
	site := Site{TLS: &TLS{Domain: "a.b", Folder: "/tls"}}
	if err := site.secure(all); err != nil {
		t.Fatal(err)
	}
	if faults := Faults(Resources{ClusterType: all}); len(faults) > 0 {
		t.Error(faults)
	}
	for name, want := range map[string]struct{ san, alpn string }{
		extprocCluster: {"spiffe://a.b/extproc", "h2"}, tracesCluster: {},
		"engines/ours": {`spiffe://a\.b/node/[a-z0-9-]+/engine`, "h2"}, "engines/both": {`spiffe://a\.b/node/[a-z0-9-]+/engine`, "http/1.1"},
	} {
		c := all[name].(*clusterv3.Cluster)
		if want.san == "" {
			if c.TransportSocket != nil {
				t.Errorf("%s has %v", name, c.TransportSocket)
			}
			continue
		}
		var context tlsv3.UpstreamTlsContext
		if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(&context); err != nil {
			t.Fatal(err)
		}
		common := context.GetCommonTlsContext()
		m := common.GetCombinedValidationContext().GetDefaultValidationContext().GetMatchTypedSubjectAltNames()[0].GetMatcher()
		if m.GetExact()+m.GetSafeRegex().GetRegex() != want.san || common.GetAlpnProtocols()[0] != want.alpn {
			t.Errorf("%s wants %v by %v", name, m, common.GetAlpnProtocols())
		}
		if got := len(c.GetTransportSocketMatches()); (got == 1) != strings.HasPrefix(name, enginesPrefix) {
			t.Errorf("%s has %d sockets beside", name, got)
		}
	}
}
