package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/xds/fleetpb"
)

// DialOption returns how a gRPC client connects to a server that want accepts. A nil
// source connects in plain text.
func (s *Source) DialOption(want func(ID) error) grpc.DialOption {
	if s == nil {
		return grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(s.Client(want, "h2")))
}

// ServerOptions returns the options of a gRPC server whose listener is a Listener:
// every call is checked against the table. Connections are made anew in time for
// the next certificate, as in Server, and end with the one that they were made with.
func (s *Source) ServerOptions(params keepalive.ServerParameters) []grpc.ServerOption {
	params.MaxConnectionAge = s.atMost(longestAge)
	return []grpc.ServerOption{
		grpc.Creds(shaken{}), grpc.KeepaliveParams(params),
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
	}
}

func (s *Source) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	g := guard{source: s, call: Call{Server: s.id, Method: info.FullMethod}}
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	if err := g.message(req); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (s *Source) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	g := guard{ServerStream: stream, source: s, call: Call{Server: s.id, Method: info.FullMethod}}
	if err := g.admit(stream.Context()); err != nil {
		return err
	}
	if !speaks(info.FullMethod) {
		return handler(srv, stream)
	}
	return handler(srv, &g)
}

// speaks reports whether messages of a method decide, too, who may ask for it.
func speaks(method string) bool {
	for _, g := range grants[method] {
		if g.node == spokenFor || g.types != "" {
			return true
		}
	}
	return false
}

// guard checks a call, and each message of a stream.
type guard struct {
	grpc.ServerStream
	source *Source
	caller ID
	from   string
	call   Call
}

// admit checks who calls.
func (g *guard) admit(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, errNoCertificate.Error())
	}
	g.from = p.Addr.String()
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	err := errNoCertificate
	if ok {
		g.caller, err = Peer(&info.State, time.Now())
	}
	if err != nil {
		g.source.Refused(g.from, err)
		return status.Error(codes.Unauthenticated, err.Error())
	}
	return g.check()
}

func (g *guard) check() error {
	err := Allow(g.caller, g.call)
	if err != nil {
		g.source.Refused(g.from, err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// RecvMsg receives a message that the caller may send.
func (g *guard) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return g.message(m)
}

// message checks for whom a message speaks, or to what it subscribes.
func (g *guard) message(m any) error {
	switch m := m.(type) {
	case *fleetpb.NodeReport:
		g.call.Node = m.GetNode()
	case *discoveryv3.DeltaDiscoveryRequest:
		g.call.Type = m.GetTypeUrl()
	case *discoveryv3.DiscoveryRequest:
		g.call.Type = m.GetTypeUrl()
	default:
		return nil
	}
	return g.check()
}

// shaken are credentials of a server whose listener speaks TLS already.
type shaken struct{}

// ServerHandshake finishes the handshake and says who the peer is.
func (shaken) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := raw.(*tls.Conn)
	if !ok {
		return nil, nil, errCleartext
	}
	if err := conn.Handshake(); err != nil {
		return nil, nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		return nil, nil, fmt.Errorf("protocol %q; must be h2", state.NegotiatedProtocol)
	}
	end := time.AfterFunc(time.Until(state.PeerCertificates[0].NotAfter), func() { _ = conn.Close() })
	return &timed{Conn: conn, end: end}, credentials.TLSInfo{
		State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// timed is a connection that ends with its peer's certificate.
type timed struct {
	net.Conn
	end *time.Timer
}

// Close closes the connection.
func (t *timed) Close() error {
	t.end.Stop()
	return t.Conn.Close()
}

// ClientHandshake is for clients, which have credentials of their own.
func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server")
}

// Info returns the protocol.
func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns the same.
func (c shaken) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing.
func (shaken) OverrideServerName(string) error { return nil }
