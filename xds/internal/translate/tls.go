package translate

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/internal/mtls"
)

// TLS is what Envoy needs for mutual TLS with the other programs.
type TLS struct {
	// Domain is the trust domain of the mesh.
	Domain string
	// Folder is where Envoy finds its certificate, on its own machine.
	Folder string
}

// Protocols of ALPN.
const (
	alpn1 = "http/1.1"
	alpn2 = "h2"
)

// cleartext marks a host without TLS: one that somebody else runs, or an engine whose
// API is plain text.
const cleartext = "cleartext"

// secure gives the clusters of our own programs mutual TLS, if the mesh has it.
func (s Site) secure(all map[string]proto.Message) error {
	if s.TLS == nil {
		return nil
	}
	for name, m := range all {
		c := m.(*clusterv3.Cluster)
		server := mtls.EnvoyServer{Folder: s.TLS.Folder, Protocol: alpn2, Server: mtls.ID{Domain: s.TLS.Domain}}
		switch {
		case name == extprocCluster:
			server.Server.Role = mtls.ExtProc
		case strings.HasPrefix(name, enginesPrefix):
			server.Server.Role = mtls.Engine
			c.TransportSocketMatches = append(hostsInCleartext(), c.GetTransportSocketMatches()...)
			if mixed(c) {
				server.Protocol = alpn1
			}
			for _, h := range c.GetHealthChecks() { // they speak HTTP/1.1 in any case
				h.TlsOptions = &corev3.HealthCheck_TlsOptions{AlpnProtocols: []string{alpn1}}
			}
		default:
			continue // the receiver of traces is not of the mesh
		}
		socket, err := server.Socket()
		if err != nil {
			return err
		}
		c.TransportSocket = socket
	}
	return nil
}

// hostsInCleartext lets hosts that are marked so be reached without TLS.
func hostsInCleartext() []*clusterv3.Cluster_TransportSocketMatch {
	return []*clusterv3.Cluster_TransportSocketMatch{{
		Name: cleartext, Match: mark(),
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.raw_buffer",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})},
		},
	}}
}

// mixed reports whether servers that somebody else runs serve a model, too: its
// cluster speaks HTTP/1.1 then.
func mixed(c *clusterv3.Cluster) bool {
	var o httpv3.HttpProtocolOptions
	options := c.GetTypedExtensionProtocolOptions()[httpOptions]
	return options.UnmarshalTo(&o) == nil && o.GetExplicitHttpConfig().GetHttpProtocolOptions() != nil
}

// mark is what hosts without TLS have in their metadata.
func mark() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{cleartext: structpb.NewBoolValue(true)}}
}
