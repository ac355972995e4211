package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/mtls"
)

// engineTLS marks a host that somebody else runs and that serves TLS, by how it is reached.
const engineTLS = "engine-tls"

// machineCA is where the authorities of a machine are, where nobody says which are to be
// trusted.
const machineCA = "/etc/ssl/certs/ca-certificates.crt"

// engineWay is how an engine of somebody else is reached by TLS. name is what its hosts are
// marked with: those that are reached alike have the same.
type engineWay struct {
	name string
	tls  config.EngineTLS
	ip   string // that its certificate must have; empty: a name, or anything
}

func wayOf(e config.Endpoint) engineWay {
	w := engineWay{tls: e.TLS}
	if e.TLS.ServerName == "" && !e.TLS.SkipVerify {
		w.ip = netip.MustParseAddrPort(e.Address).Addr().String()
	}
	w.name = fmt.Sprintf("%s-%016x", engineTLS, xxhash.Sum64String(fmt.Sprintf("%#v %q", w.tls, w.ip)))
	return w
}

// engineWays returns, by their names, how those of the endpoints are reached that serve TLS and
// that want takes.
func engineWays(d *desired.State, want func(e config.Endpoint) bool) map[string]engineWay {
	all := map[string]engineWay{}
	for _, o := range d.Endpoints {
		for _, e := range o.Spec.Endpoints {
			if e.TLS.On() && want(e) {
				w := wayOf(e)
				all[w.name] = w
			}
		}
	}
	return all
}

// reachEngines lets a model's cluster speak TLS with those of its hosts that do.
func reachEngines(c *clusterv3.Cluster, d *desired.State, model string) {
	ways := engineWays(d, func(e config.Endpoint) bool { return slices.Contains(e.Models, model) })
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name: name, Match: engineMark(name), TransportSocket: ways[name].socket(),
		})
	}
}

// engineSecrets adds what Envoy follows of files for such hosts, on its own machine.
func engineSecrets(all map[string]proto.Message, d *desired.State) {
	for _, w := range engineWays(d, func(config.Endpoint) bool { return true }) {
		if t := w.tls; t.Cert != "" {
			all[w.certificate()] = mtls.EnvoyCertificate(w.certificate(), t.Cert, cmp.Or(t.Key, t.Cert))
		}
		if !w.tls.SkipVerify {
			all[w.authorities()] = w.trusted()
		}
	}
}

func (w engineWay) certificate() string { return w.name + "/certificate" }
func (w engineWay) authorities() string { return w.name + "/authorities" }

// trusted is whose certificates are taken.
func (w engineWay) trusted() *tlsv3.Secret {
	ca := cmp.Or(w.tls.CA, machineCA)
	return &tlsv3.Secret{Name: w.authorities(), Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa:        &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: ca}},
		WatchedDirectory: &corev3.WatchedDirectory{Path: filepath.Dir(ca)},
	}}}
}

// socket is Envoy's side of a connection.
func (w engineWay) socket() *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		AlpnProtocols: []string{alpn1},
	}
	if w.tls.Cert != "" {
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: w.certificate(), SdsConfig: ads()}}
	}
	if w.tls.SkipVerify {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustChainVerification: tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED,
		}}
	} else {
		san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: equals(w.tls.ServerName)}
		if w.ip != "" {
			san = &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_IP_ADDRESS, Matcher: equals(w.ip)}
		}
		common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san}},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: w.authorities(), SdsConfig: ads()},
			},
		}
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.UpstreamTlsContext{Sni: w.tls.ServerName, CommonTlsContext: common})},
	}
}

func equals(text string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}}
}

// engineMark is what hosts have in their metadata that are reached in a way.
func engineMark(name string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{engineTLS: structpb.NewStringValue(name)}}
}
