package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/fleetpb"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFaultsHaveAnExitCode(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	head := "apiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: {sessions: {cookie: {keyFile: "
	model := "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec: {weights: %s, tokenizer: %q}\n"
	nowhere := write(t, "c.yaml", fmt.Sprintf(model+"---\n"+model, "m", "/nowhere.gguf", "", "n", "/nowhere.gguf", "/nowhere.json"))
	if err := run(t.Context(), []string{"-check", "-elsewhere", "-config", nowhere}, io.Discard); err != nil {
		t.Errorf("what other machines have: %v", err)
	}
	tests := []struct {
		name string
		args []string
		want string
		code int
	}{
		{name: "unknown flag", args: []string{"-nothing"}, want: "-nothing", code: 2},
		{name: "argument", args: []string{"word"}, want: `argument "word"`, code: 2},
		{name: "bad address", args: []string{"-check", "-listen", "x"}, want: `-listen: "x"; must be ip:port`, code: 2},
		{name: "bad port", args: []string{"-check", "-metrics", "127.0.0.1:99999"}, want: `-metrics: "127.0.0.1:99999"; must be ip:port`, code: 2},
		{name: "bad gateway", args: []string{"-check", "-gateway", "x"}, want: "gateway: address x", code: 2},
		{name: "bad target", args: []string{"-check", "-traces", "x"}, want: "must be otlp://", code: 2},
		{name: "bad file", args: []string{"-check", "-config", write(t, "bad.yaml", "kind: Nothing")}, want: "bad.yaml:1: kind", code: 3},
		{name: "no file", args: []string{"-check", "-config", "/nowhere.yaml"}, want: "/nowhere.yaml", code: 3},
		{
			name: "no key", args: []string{"-check", "-config", write(t, "a.yaml", head+"/nowhere.key}}}")},
			want: "spec.sessions.cookie.keyFile: open /nowhere.key", code: 3,
		},
		{
			name: "short key", args: []string{"-check", "-config", write(t, "b.yaml", head+write(t, "key", "short")+"}}}")},
			want: "a key of 5 bytes; must be 16 to 256", code: 3,
		},
		{name: "no weights", args: []string{"-check", "-config", nowhere}, want: "model m: weights: stat /nowhere.gguf", code: 3},
		{name: "no tokenizer", args: []string{"-check", "-config", nowhere}, want: "model n: tokenizer: open /nowhere.json", code: 3},
		{name: "no log", args: []string{"-check", "-access-log", "/nowhere/access.log"}, want: "-access-log: stat /nowhere", code: 3},
		{name: "no certificate", args: []string{"-check", "-https", "127.0.0.1:1", "-https-cert", "/nowhere.pem", "-https-key", "/nowhere.pem"}, want: "-https-cert, -https-key: open /nowhere.pem", code: 3},
		{name: "KEDA's certificate alone", args: []string{"-check", "-scaler-tls-cert", "c"}, want: "-scaler-tls-cert, -scaler-tls-key, -scaler-tls-client-ca; go with -scaler", code: 2},
		{name: "half of KEDA's certificate", args: []string{"-check", "-scaler", "127.0.0.1:0", "-scaler-tls-cert", "c"}, want: "-scaler-tls-cert and -scaler-tls-key; must be given both", code: 2},
		{name: "KEDA's authorities alone", args: []string{"-check", "-scaler", "127.0.0.1:0", "-scaler-tls-client-ca", "c"}, want: "-scaler-tls-client-ca; needs -scaler-tls-cert", code: 2},
		{name: "another machine's port", args: []string{"-insecure", "-listen", "203.0.113.1:1"}, want: "listen tcp 203.0.113.1:1", code: 1},
		{name: "port in use", args: []string{"-listen", busy.Addr().String()}, want: "listen: ", code: 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != tt.code {
				t.Errorf("run() = %v, exit code %d; want …%s…, %d", err, program.ExitCode(err), tt.want, tt.code)
			}
		})
	}
}

func TestCheckAndVersion(t *testing.T) {
	for _, flag := range []string{"-check", "-version"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{flag}, &out); err != nil || out.Len() == 0 {
			t.Errorf("run(%s) = %v, said %q", flag, err, out.String())
		}
	}
}

func TestKeysOfCookies(t *testing.T) {
	var ring, other keyring
	ring.add(nil)
	other.add(nil)
	own := ring.all[0]
	if len(own) < 16 || bytes.Equal(own, other.all[0]) {
		t.Errorf("keys %x and %x, want two different ones", own, other.all[0])
	}
	ring.add(nil)
	ring.add([]byte("a"))
	ring.add([]byte("b"))
	ring.add([]byte("a"))
	if want := [][]byte{[]byte("a"), []byte("b"), own}; !slices.EqualFunc(ring.all, want, bytes.Equal) {
		t.Errorf("keys %q, want %q", ring.all, want)
	}
	for i := range 9 {
		ring.add([]byte{byte(i)})
	}
	if len(ring.all) != policy.KeysKept {
		t.Errorf("%d keys are kept", len(ring.all))
	}
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	// line is closed once the ready line is there.
	line chan struct{}
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("msg=ready")) {
		defer close(l.line)
	}
	return l.b.Write(p)
}

// attr returns an attribute of the ready line, or of the one about KEDA.
func (l *logBuffer) attr(name string) string {
	<-l.line
	l.mu.Lock()
	defer l.mu.Unlock()
	m := regexp.MustCompile(`msg=(?:ready|"KEDA is served").* ` + name + `=(\S+)`).FindStringSubmatch(l.b.String())
	if m == nil {
		return ""
	}
	return m[1]
}

// TestRun starts the program whole, talks to each of its services and ends it.
func TestRun(t *testing.T) {
	log := &logBuffer{line: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-listen", "127.0.0.1:0", "-metrics", "127.0.0.1:0", "-settle", "2s"}, log)
	}()
	conn, err := grpc.NewClient(log.attr("grpc"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
	ready := "http://" + log.attr("metrics") + "/readyz"
	if code, all := readiness(t, ready); code != http.StatusServiceUnavailable || all["not-settled"] != obs.Blocking {
		t.Errorf("/readyz before the nodes have reported: %d %v", code, all)
	}
	checkFleet(t, fleetpb.NewFleetClient(conn))
	for {
		code, all := readiness(t, ready)
		if _, waits := all["not-settled"]; waits {
			continue // for -settle at most
		}
		if _, down := all["model-down"]; code != http.StatusOK || !down {
			t.Errorf("/readyz of an xds whose only node has no engine: %d %v, want 200 and model-down", code, all)
		}
		break
	}
	for path, want := range map[string]string{"/metrics": "millrace_xds_reports_total", "/healthz": "ok"} {
		if err := shows("http://"+log.attr("metrics")+path, want); err != nil {
			t.Error(err)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("run() = %v after its context ended", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("doesn't end")
	}
}

// checkFleet reports a node and finds it in the view.
func checkFleet(t *testing.T, c fleetpb.FleetClient) {
	t.Helper()
	report, err := c.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = report.Send(&fleetpb.NodeReport{
		Node: "node-a", Seq: 1, Sent: timestamppb.Now(), EngineError: "unreachable: x",
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := c.Watch(t.Context(), &fleetpb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		v, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(v.GetNodes()) == 1 && v.GetNodes()[0].GetReport().GetNode() == "node-a" {
			return
		}
	}
	t.Error("the view never shows the node")
}

// readiness returns the answer of /readyz: its code, and severities by code.
func readiness(t *testing.T, url string) (int, map[string]obs.Severity) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list []obs.Condition
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	all := map[string]obs.Severity{}
	for _, c := range list {
		all[c.Code] = c.Severity
	}
	return resp.StatusCode, all
}

func shows(url, want string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(b), want) {
		err = fmt.Errorf("%s has no %q", url, want)
	}
	return err
}
