package mtls

import (
	"path"
	"regexp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Names of Envoy's secrets, which are also those of their files without .json.
const (
	certificate = "certificate"
	authorities = "authorities"
)

// EnvoyServer is what Envoy must find at the other end of a connection.
type EnvoyServer struct {
	// Folder is where Envoy finds the files of Secrets, on its own machine.
	Folder string
	// Server is who must answer; of an engine without a node, any node's.
	Server ID
	// Protocol is ALPN's.
	Protocol string
}

// Socket returns Envoy's side of mutual TLS. Its certificate comes from files that it
// follows by itself.
func (e EnvoyServer) Socket() (*corev3.TransportSocket, error) {
	context, err := pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		AlpnProtocols:                  []string{e.Protocol},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{e.secret(certificate)},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: e.name()}},
				},
				ValidationContextSdsSecretConfig: e.secret(authorities),
			},
		},
	}})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: context},
	}, nil
}

// name matches the identities of the server.
func (e EnvoyServer) name() *matcherv3.StringMatcher {
	if e.Server.Role != Engine || e.Server.Node != "" {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: e.Server.String()}}
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{
		Regex: "spiffe://" + regexp.QuoteMeta(e.Server.Domain) + "/node/[a-z0-9-]+/engine",
	}}}
}

// secret returns where a secret comes from.
func (e EnvoyServer) secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{
			PathConfigSource: &corev3.PathConfigSource{Path: path.Join(e.Folder, name+".json")},
		},
	}}
}

// EnvoyCertificate returns the secret of that name by which Envoy reads a certificate and its key
// from its own files, and again when something in the certificate's folder is moved.
func EnvoyCertificate(name, cert, key string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: file(cert), PrivateKey: file(key), WatchedDirectory: watch(cert),
	}}}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func watch(name string) *corev3.WatchedDirectory {
	return &corev3.WatchedDirectory{Path: path.Dir(name)}
}

// Secrets returns the files of a Folder by name: how Envoy reads its own files, and
// when it reads them again: when something in their folders is moved.
func Secrets(f Files) (map[string][]byte, error) {
	secrets := []*tlsv3.Secret{
		EnvoyCertificate(certificate, f.Cert, f.Key),
		{Name: authorities, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(f.CA), WatchedDirectory: watch(f.CA),
		}}},
	}
	out := make(map[string][]byte, len(secrets))
	for _, s := range secrets {
		one, err := pack(s)
		if err != nil {
			return nil, err
		}
		text, err := protojson.Marshal(&discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{one}})
		if err != nil {
			return nil, err
		}
		out[s.Name+".json"] = text
	}
	return out, nil
}

// pack returns m as Any; its bytes depend on nothing but m.
func pack(m proto.Message) (*anypb.Any, error) {
	a := new(anypb.Any)
	return a, anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true})
}
