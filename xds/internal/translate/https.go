package translate

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/mtls"
)

// HTTPS is a public listener whose clients come by TLS 1.2 or newer, and show no certificate.
type HTTPS struct {
	// Gateway is "ip:port" of the listener.
	Gateway string
	// Cert and Key are paths on Envoy's machine, in PEM. Envoy reads them again when
	// something in the certificate's folder is renamed.
	Cert, Key string
}

// httpsName names the listener, and its certificate.
const httpsName = "gateway-https"

// secrets are the certificates that Envoy asks for. They come by ADS, though they only name
// files, as Envoy follows files of no others.
func (h *HTTPS) secrets() map[string]proto.Message {
	if h == nil {
		return map[string]proto.Message{}
	}
	return map[string]proto.Message{httpsName: mtls.EnvoyCertificate(httpsName, h.Cert, h.Key)}
}

func (h *HTTPS) socket() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
				AlpnProtocols:                  []string{alpn2, alpn1},
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: httpsName, SdsConfig: ads()}},
			},
		})},
	}
}
