package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// authority returns one of the domain millrace.
func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue writes a certificate and the authority, and returns the files.
func issue(t *testing.T, a *Authority, id ID, life time.Duration) Files {
	t.Helper()
	text, err := a.Issue(id, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, text, a.PEM())
}

func write(t *testing.T, cert, ca []byte) Files {
	t.Helper()
	dir := t.TempDir()
	f := Files{Cert: filepath.Join(dir, "me.pem"), Key: filepath.Join(dir, "me.pem"), CA: filepath.Join(dir, "ca.pem")}
	for path, text := range map[string][]byte{f.Cert: cert, f.CA: ca} {
		if err := WriteFile(path, text); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func load(t *testing.T, f Files, log io.Writer) *Source {
	t.Helper()
	s, err := Load(f, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// control is an xds that takes every report and every subscription.
type control struct {
	fleetpb.UnimplementedFleetServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func (control) Report(stream fleetpb.Fleet_ReportServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(&fleetpb.Directive{}); err != nil {
			return err
		}
	}
}

func (control) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl()})
}

// serve starts xds under s and returns its address.
func serve(t *testing.T, s *Source) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(s.ServerOptions(keepalive.ServerParameters{})...)
	fleetpb.RegisterFleetServer(srv, control{})
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, control{})
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.Listener(ln, "h2")) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func dial(t *testing.T, addr string, how grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, how)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func report(t *testing.T, conn *grpc.ClientConn, node string) error {
	t.Helper()
	stream, err := fleetpb.NewFleetClient(conn).Report(t.Context())
	if err != nil {
		return err
	}
	if err := stream.Send(&fleetpb.NodeReport{Node: node}); err != nil && err != io.EOF {
		return err
	}
	_, err = stream.Recv()
	return err
}

func TestANodeSpeaksForItselfOnly(t *testing.T) {
	var log logBuffer
	ca := authority(t)
	addr := serve(t, load(t, issue(t, ca, ID{Role: XDS}, time.Hour), &log))
	agent := load(t, issue(t, ca, ID{Role: NodeAgent, Node: "node-a"}, time.Hour), &log)
	conn := dial(t, addr, agent.DialOption(Is(XDS)))
	if err := report(t, conn, "node-a"); err != nil {
		t.Errorf("its own report: %v", err)
	}
	if err := report(t, conn, "node-b"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another node's report: %v", err)
	}
	want := `refused .*spiffe://millrace/node/node-a/nodeagent may not ask spiffe://millrace/xds for .*Fleet/Report: it speaks for node node-b`
	if !matches(want, log.String()) {
		t.Errorf("log\n%slacks %s", log.String(), want)
	}
	ads := func(typ string) error {
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
		if err != nil {
			return err
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ}); err != nil && err != io.EOF {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	if err := ads(wire.EndpointType); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a nodeagent's subscription: %v", err)
	}
	conn = dial(t, addr, load(t, issue(t, ca, ID{Role: Envoy}, time.Hour), &log).DialOption(Is(XDS)))
	if err := ads(wire.TypePrefix + "envoy.config.cluster.v3.Cluster"); err != nil {
		t.Errorf("Envoy's subscription: %v", err)
	}
	if err := ads(wire.PolicyType); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Envoy's subscription to policies: %v", err)
	}
}

func TestAStrangerGetsNothing(t *testing.T) {
	ca, other := authority(t), authority(t)
	id := ID{Role: Operator}
	tests := []struct {
		name string
		tls  func(*testing.T) *tls.Config // nil: plain
		want string                       // in the log
	}{
		{"plain text", nil, "it speaks plain text"},
		{"no certificate", func(*testing.T) *tls.Config { return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} }, "it shows no certificate"},
		{"another authority", func(t *testing.T) *tls.Config { return pair(t, issue(t, other, id, time.Hour)) }, "certificate of spiffe://millrace/operator: .*unknown authority"},
		{"one that has ended", func(t *testing.T) *tls.Config {
			text, err := ca.Issue(id, time.Now().Add(-2*time.Hour), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return pair(t, write(t, text, ca.PEM()))
		}, "certificate of spiffe://millrace/operator: .*expired"},
		{"no identity", func(t *testing.T) *tls.Config { return pair(t, write(t, odd(t, ca), ca.PEM())) }, "contains no URI SAN"},
		{"two identities", func(t *testing.T) *tls.Config {
			return pair(t, write(t, odd(t, ca, "spiffe://millrace/operator", "spiffe://millrace/xds"), ca.PEM()))
		}, "more than one URI SAN"},
		{"an identity that is nobody's", func(t *testing.T) *tls.Config {
			return pair(t, write(t, odd(t, ca, "spiffe://millrace/root"), ca.PEM()))
		}, "identity spiffe://millrace/root; must end in"},
		{"another domain", func(t *testing.T) *tls.Config {
			return pair(t, write(t, odd(t, ca, "spiffe://other/operator"), ca.PEM()))
		}, "certificate of spiffe://other/operator"},
		{"the wrong role", func(t *testing.T) *tls.Config { return pair(t, issue(t, ca, ID{Role: ExtProc}, time.Hour)) },
			"spiffe://millrace/extproc may not ask spiffe://millrace/xds for .*Report: its role may not"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log logBuffer
			s := load(t, issue(t, ca, ID{Role: XDS}, time.Hour), &log)
			addr := serve(t, s)
			how := (*Source)(nil).DialOption(nil)
			if tt.tls != nil {
				how = grpc.WithTransportCredentials(newTLS(tt.tls(t)))
			}
			if err := report(t, dial(t, addr, how), "node-a"); err == nil {
				t.Error("got an answer")
			}
			if !matches(tt.want, log.String()) {
				t.Errorf("log\n%slacks %s", log.String(), tt.want)
			}
		})
	}
}

func TestAServerOfAnotherRoleGetsNoClient(t *testing.T) {
	ca := authority(t)
	addr := serve(t, load(t, issue(t, ca, ID{Role: Engine, Node: "node-b"}, time.Hour), io.Discard))
	agent := load(t, issue(t, ca, ID{Role: NodeAgent, Node: "node-a"}, time.Hour), io.Discard)
	for name, want := range map[string]func(ID) error{"must be of role xds": Is(XDS), "must be the engine of node node-a": IsEngineOf("node-a")} {
		if err := report(t, dial(t, addr, agent.DialOption(want)), "node-a"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
	if err := report(t, dial(t, addr, agent.DialOption(IsEngineOf("node-b"))), "node-a"); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	var log logBuffer
	ca, other := authority(t), authority(t)
	id := ID{Domain: "millrace", Role: XDS}
	f := issue(t, ca, id, time.Hour)
	s := load(t, f, &log)
	first := s.current()
	put := func(text []byte) {
		t.Helper()
		if err := WriteFile(f.Cert, text); err != nil {
			t.Fatal(err)
		}
	}
	next := func(a *Authority, id ID) []byte {
		t.Helper()
		text, err := a.Issue(id, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	// A certificate that came before its key.
	half := next(ca, id)
	cert, _, _ := bytes.Cut(half, []byte("-----BEGIN PRIVATE KEY"))
	_, key, _ := bytes.Cut(next(ca, id), []byte("-----BEGIN PRIVATE KEY"))
	put(slices.Concat(cert, []byte("-----BEGIN PRIVATE KEY"), key))
	if s.current() != first || len(s.Conditions()) != 1 || s.Conditions()[0].Code != "certificate" {
		t.Errorf("a certificate without its key: conditions %v", s.Conditions())
	}
	put(next(ca, ID{Role: ExtProc}))
	if s.current() != first || !strings.Contains(s.Conditions()[0].Text, "it is of spiffe://millrace/extproc now") {
		t.Errorf("another's certificate: conditions %v", s.Conditions())
	}
	put(half)
	if s.current() == first || len(s.Conditions()) != 0 || !strings.Contains(log.String(), "certificate read again") {
		t.Errorf("a good one is not read: %v", s.Conditions())
	}
	// Two authorities while one follows the other.
	if err := WriteFile(f.CA, append(ca.PEM(), other.PEM()...)); err != nil {
		t.Fatal(err)
	}
	addr := serve(t, s)
	for _, a := range []*Authority{ca, other} {
		client := load(t, write(t, next(a, ID{Role: Operator}), append(ca.PEM(), other.PEM()...)), io.Discard)
		if _, err := grpc_health_v1.NewHealthClient(dial(t, addr, client.DialOption(Is(XDS)))).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Error(err)
		}
	}
}

func TestAStreamEndsWithItsCertificate(t *testing.T) {
	ca := authority(t)
	addr := serve(t, load(t, issue(t, ca, ID{Role: XDS}, time.Hour), io.Discard))
	agent := load(t, issue(t, ca, ID{Role: NodeAgent, Node: "node-a"}, 2*time.Second), io.Discard)
	stream, err := fleetpb.NewFleetClient(dial(t, addr, agent.DialOption(Is(XDS)))).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&fleetpb.NodeReport{Node: "node-a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable { // nothing more is said
		t.Errorf("the stream ends with %v", err)
	}
}

func TestHTTP(t *testing.T) {
	ca := authority(t)
	s := load(t, issue(t, ca, ID{Role: Engine, Node: "node-a"}, time.Hour), io.Discard)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })}
	srv.Protocols.SetHTTP1(true)
	s.Server(srv, OpenAI)
	go func() { _ = srv.Serve(s.Listener(ln, "h2", "http/1.1")) }()
	t.Cleanup(func() { srv.Close() })
	get := func(client *Source, protocol string) (string, error) {
		tr := &http.Transport{TLSClientConfig: client.Client(IsEngineOf("node-a"), protocol), ForceAttemptHTTP2: protocol == "h2", DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + ln.Addr().String())
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	envoy := load(t, issue(t, ca, ID{Role: Envoy}, time.Hour), io.Discard)
	for protocol, want := range map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"} {
		if got, err := get(envoy, protocol); got != want {
			t.Errorf("%s: %q, %v", protocol, got, err)
		}
	}
	agent := load(t, issue(t, ca, ID{Role: NodeAgent, Node: "node-a"}, time.Hour), io.Discard)
	if got, err := get(agent, "h2"); err != nil || !strings.Contains(got, "nodeagent may not ask spiffe://millrace/node/node-a/engine for the OpenAI API") {
		t.Errorf("a nodeagent got %q, %v", got, err)
	}
	stranger := load(t, issue(t, authority(t), ID{Role: Envoy}, time.Hour), io.Discard)
	if got, err := get(stranger, "h2"); err == nil {
		t.Errorf("a stranger got %q", got)
	}
}

// TestIdleConnectionsAreClosedByClientsFirst is of certificates that live shortly, too.
func TestIdleConnectionsAreClosedByClientsFirst(t *testing.T) {
	ca := authority(t)
	for _, life := range []time.Duration{10 * time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		srv := &http.Server{Protocols: new(http.Protocols)}
		load(t, issue(t, ca, ID{Role: Engine, Node: "node-a"}, life), io.Discard).Server(srv, OpenAI)
		if srv.IdleTimeout < wire.ServerIdle {
			t.Errorf("with a certificate of %s an idle connection is closed after %s; a client keeps it for %s", life, srv.IdleTimeout, wire.OurIdle)
		}
	}
}

func TestRenew(t *testing.T) {
	start := time.Now()
	c := &x509.Certificate{NotBefore: start, NotAfter: start.Add(8 * time.Hour)}
	tests := []struct {
		began, now time.Duration
		want       bool
	}{{0, 6 * time.Hour, false}, {0, 7*time.Hour + 1, true}, {7*time.Hour + 1, 7*time.Hour + 2, false}}
	for _, tt := range tests {
		if got := renew(start.Add(tt.began), start.Add(tt.now), c); got != tt.want {
			t.Errorf("renew(%s, %s) = %v", tt.began, tt.now, got)
		}
	}
}

func TestTheFirstRequestAfterItsCertificateIsTheLast(t *testing.T) {
	start := time.Now()
	cert := &x509.Certificate{NotBefore: start, NotAfter: start.Add(8 * time.Hour)}
	c := &conn{began: start}
	for _, tt := range []struct {
		now, at time.Duration
		last    bool
	}{
		{time.Hour, time.Hour, false},
		{9 * time.Hour, 0, true}, // judged as when the connection began
		{9 * time.Hour, 9 * time.Hour, true},
	} {
		at, last := c.next(start.Add(tt.now), cert)
		if !at.Equal(start.Add(tt.at)) || last != tt.last {
			t.Errorf("a request after %s: judged as of %s, last %v; want %s, %v", tt.now, at.Sub(start), last, tt.at, tt.last)
		}
	}
}

// odd returns a certificate of the authority with any identities.
func odd(t *testing.T, a *Authority, uris ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := template("spiffe://x/y", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c.URIs, c.KeyUsage = nil, x509.KeyUsageDigitalSignature
	c.Subject.CommonName = "odd"
	for _, uri := range uris {
		u, err := template(uri, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u.URIs...)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
}

// pair returns a client that shows the files' certificate and takes any server.
func pair(t *testing.T, f Files) *tls.Config {
	t.Helper()
	c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{c}}
}

func newTLS(c *tls.Config) credentials.TransportCredentials { return credentials.NewTLS(c) }

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
