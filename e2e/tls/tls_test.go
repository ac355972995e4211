// Package tls runs a mesh of `millrace up -tls`: it serves, survives the death of each
// part and the end of its certificates, and gives strangers nothing.
package tls

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// life is how long the mesh's certificates live here: some follow each other while
// the test runs.
const life = 30 * time.Second

// TestTLS runs the parts in order on one mesh.
func TestTLS(t *testing.T) {
	m := rig.OwnMesh(t, "-tls", "-tls-life", life.String())
	old := steal(t, m, mtls.ID{Role: mtls.Operator}) // it ends before the test does
	stolen := time.Now()
	l := m.StartLoad(t, 4)
	l.More(t, 4)

	t.Run("a person sees the mesh", func(t *testing.T) {
		if got := m.StatusTable(t); !strings.Contains(got, "from xds") {
			t.Errorf("millrace status:\n%s", got)
		}
		if got := rig.Millrace(t, "Hello!\n", "chat", "-dir", m.Dir); got.Code != 0 || got.Stdout == "" {
			t.Errorf("millrace chat: %+v", got)
		}
	})
	t.Run("a stranger gets nothing", func(t *testing.T) { strangers(t, m) })
	t.Run("a stolen certificate claims another node", func(t *testing.T) { claims(t, m) })
	t.Run("each part is killed", func(t *testing.T) { kills(t, m, l) })
	t.Run("certificates follow each other", func(t *testing.T) {
		file := m.File("tls", "envoy.pem")
		for range 2 {
			before := rig.Read(t, file)
			rig.Wait(t, life, "Envoy's next certificate", func() error {
				if rig.Read(t, file) == before {
					return fmt.Errorf("%s is as before", file)
				}
				return nil
			})
			l.More(t, 20)
		}
		rig.Wait(t, 2*life, "the end of the first certificates", func() error {
			if left := life - time.Since(stolen); left > 0 {
				return fmt.Errorf("they are good for %s more", left)
			}
			return nil
		})
		l.More(t, 20)
		if err := watch(t, m, old); status.Code(err) != codes.Unavailable || !strings.Contains(rig.Read(t, m.File("logs", "xds.log")), "certificate has expired") {
			t.Errorf("one that has ended: %v", err)
		}
	})
	l.MustAllSucceed(t)
	m.AwaitWhole(t)
	t.Log(l)
}

// steal copies a program's certificate and key.
func steal(t *testing.T, m *rig.Mesh, id mtls.ID) mtls.Files {
	t.Helper()
	from, to := mtls.In(m.File("tls"), id), mtls.In(t.TempDir(), id)
	for _, f := range [][2]string{{from.Cert, to.Cert}, {from.CA, to.CA}} {
		text, err := os.ReadFile(f[0])
		if err == nil {
			err = mtls.WriteFile(f[1], text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func load(t *testing.T, f mtls.Files) *mtls.Source {
	t.Helper()
	s, err := mtls.Load(f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// watch asks xds for the fleet with the files' certificate.
func watch(t *testing.T, m *rig.Mesh, f mtls.Files) error {
	t.Helper()
	conn := dial(t, m.Addr(t, "xds", "grpc"), load(t, f).DialOption(mtls.Is(mtls.XDS)))
	stream, err := fleetpb.NewFleetClient(conn).Watch(t.Context(), &fleetpb.WatchRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func dial(t *testing.T, addr string, security grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, security)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// calls are one of each port that speaks gRPC; an answer is an error of the test.
func calls(m *rig.Mesh, t *testing.T) map[string]func(*grpc.ClientConn) error {
	node := m.Replicas(t).Whole
	return map[string]func(*grpc.ClientConn) error{
		m.Addr(t, "xds", "grpc"): func(c *grpc.ClientConn) error {
			s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c).DeltaAggregatedResources(t.Context())
			if err != nil {
				return err
			}
			_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: wire.PolicyType})
			_, err = s.Recv()
			return err
		},
		m.Addr(t, "extproc", "grpc"): func(c *grpc.ClientConn) error {
			s, err := extprocv3.NewExternalProcessorClient(c).Process(t.Context())
			if err != nil {
				return err
			}
			_ = s.Send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{}}})
			_, err = s.Recv()
			return err
		},
		m.Addr(t, "engine@"+node, "grpc"): func(c *grpc.ClientConn) error {
			_, err := enginepb.NewEngineClient(c).Assign(t.Context(), &enginepb.Assignment{})
			return err
		},
	}
}

// strangers tries every port in cleartext, with a certificate of another authority,
// and with one of the mesh whose role may not.
func strangers(t *testing.T, m *rig.Mesh) {
	r := m.Replicas(t)
	other, err := mtls.NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := other.Issue(mtls.ID{Role: mtls.Envoy}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	foreign := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}
	wrong := load(t, steal(t, m, mtls.ID{Role: mtls.NodeAgent, Node: r.Head})).Client(nil, "h2")
	for name, security := range map[string]grpc.DialOption{
		"cleartext":         (*mtls.Source)(nil).DialOption(nil),
		"another authority": grpc.WithTransportCredentials(credentials.NewTLS(foreign)),
		"the wrong role":    grpc.WithTransportCredentials(credentials.NewTLS(wrong)),
	} {
		for addr, call := range calls(m, t) {
			if err := call(dial(t, addr, security)); status.Code(err) != codes.Unavailable && status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s at %s: %v", name, addr, err)
			}
		}
	}
	api := m.Addr(t, "engine@"+r.Whole, "http")
	if resp, err := http.Get("http://" + api + "/v1/models"); err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(body), rig.Model) {
			t.Errorf("the API in cleartext: %s", body)
		}
	}
	for name, c := range map[string]*tls.Config{"another authority": foreign, "the wrong role": wrong} {
		tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true, DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + api + "/v1/models")
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("the API, %s: %d %s", name, resp.StatusCode, body)
		}
	}
	shard := m.Addr(t, "shard@"+r.Tail, "rpc")
	hello := []byte{14, 0, 0, 0, 0, 0, 0, 0, 0} // of llama.cpp's RPC
	if got := answer(t, shard, nil, hello); len(got) > 0 && got[0] != 21 {
		t.Errorf("the shard in cleartext answers %q; must be an alert of TLS at most", got)
	}
	for name, c := range map[string]*tls.Config{"another authority": foreign, "the wrong role": wrong} {
		if got := answer(t, shard, c, hello); len(got) > 0 {
			t.Errorf("the shard, %s, answers %q", name, got)
		}
	}
	logged := rig.Read(t, m.File("logs", "xds.log"))
	for _, want := range []string{"it speaks plain text", "certificate of spiffe://millrace/envoy", "spiffe://millrace/node/" + r.Head + "/nodeagent may not ask spiffe://millrace/xds for"} {
		if !strings.Contains(logged, want) {
			t.Errorf("xds.log lacks %q", want)
		}
	}
}

// answer says hello at a port and returns what comes back before it is closed.
func answer(t *testing.T, addr string, c *tls.Config, hello []byte) []byte {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if c != nil {
		conn = tls.Client(conn, c)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write(hello)
	got, _ := io.ReadAll(conn)
	return got
}

// claims reports, with the certificate of one node, another: it is refused, and the
// other one's own stream continues.
func claims(t *testing.T, m *rig.Mesh) {
	r := m.Replicas(t)
	thief := load(t, steal(t, m, mtls.ID{Role: mtls.NodeAgent, Node: r.Head}))
	conn := dial(t, m.Addr(t, "xds", "grpc"), thief.DialOption(mtls.Is(mtls.XDS)))
	s, err := fleetpb.NewFleetClient(conn).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(&fleetpb.NodeReport{Node: r.Whole, Seq: 1, Sent: timestamppb.Now(), EngineError: "unreachable: gone"})
	if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the report is answered with %v", err)
	}
	logged := rig.Read(t, m.File("logs", "xds.log"))
	if !strings.Contains(logged, "it speaks for node "+r.Whole) {
		t.Error("xds.log does not say who claimed what")
	}
	if strings.Contains(logged, "unreachable: gone") {
		t.Error("the report was believed")
	}
}

// kills ends each part once, under load.
func kills(t *testing.T, m *rig.Mesh, l *rig.Load) {
	r := m.Replicas(t)
	for _, victim := range []string{
		"xds", "extproc", "nodeagent@" + r.Whole, "engine@" + r.Whole, "engine@" + r.Tail, "backend@" + r.Head, "shard@" + r.Tail,
	} {
		m.AwaitWhole(t)
		before := m.Process(t, victim)
		rig.Kill(t, before.PID)
		rig.Wait(t, rig.BackLimit, victim+" is started again", func() error { return m.Restarted(before) })
		took := m.AwaitWhole(t)
		l.More(t, 4)
		t.Logf("%s: whole again after %.1f s", victim, took.Seconds())
	}
}
