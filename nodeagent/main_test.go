package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/fleetpb"
)

// engine is READY and says so once a stream.
type engine struct {
	enginepb.UnimplementedEngineServer
}

func (engine) Watch(_ *enginepb.WatchRequest, stream enginepb.Engine_WatchServer) error {
	if err := stream.Send(&enginepb.Status{Node: "node-a", State: enginepb.State_READY, Generation: 3}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// control hands each report to a test.
type control struct {
	fleetpb.UnimplementedFleetServer
	reports chan *fleetpb.NodeReport
}

func (c control) Report(stream fleetpb.Fleet_ReportServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case c.reports <- r:
		case <-stream.Context().Done():
		}
	}
}

// serveGRPC serves on a port of its own and returns its address.
func serveGRPC(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

var metricsAddr = regexp.MustCompile(`msg=ready .*metrics=(\S+)`)

func TestReportsOverTheNetworkUntilItIsEnded(t *testing.T) {
	c := control{reports: make(chan *fleetpb.NodeReport)}
	xds := serveGRPC(t, func(s *grpc.Server) { fleetpb.RegisterFleetServer(s, c) })
	eng := serveGRPC(t, func(s *grpc.Server) { enginepb.RegisterEngineServer(s, engine{}) })
	ctx, cancel := context.WithCancel(t.Context())
	logs, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-node", "node-a", "-zone", "r1", "-capacity", "40", "-engine", eng, "-xds", xds}, w)
		w.Close()
		done <- err
	}()
	lines := bufio.NewReader(logs)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err, <-done)
	}
	addr := metricsAddr.FindStringSubmatch(line)
	if addr == nil {
		t.Fatalf("first line %q, want ready", line)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()

	r := <-c.reports
	if err := r.ValidateAll(); err != nil {
		t.Error(err)
	}
	tel := r.GetTelemetry()
	if r.GetNode() != "node-a" || r.GetZone() != "r1" || r.GetEngine().GetState() != enginepb.State_READY || tel.GetCapacity() != 40 || tel.GetMemoryTotalBytes() == 0 {
		t.Errorf("first report %v", r)
	}
	if again := <-c.reports; again.GetSeq() != 2 {
		t.Errorf("second report %v", again)
	}
	checkAdmin(t, "http://"+addr[1])
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run() = %v after its context ended", err)
	}
}

func checkAdmin(t *testing.T, base string) {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	for path, want := range map[string]string{"/readyz": "[]", "/metrics": "millrace_nodeagent_reports_sent_total", "/healthz": "ok"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s answers %d %.200s, want %s", path, resp.StatusCode, body, want)
		}
	}
}

func TestReadyzNamesWhatIsAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	logs, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-node", "node-a", "-engine", "127.0.0.1:1", "-xds", "127.0.0.1:1"}, w)
		w.Close()
		done <- err
	}()
	lines := bufio.NewScanner(logs)
	base := ""
	for seen := 0; seen < 4 && lines.Scan(); seen++ { // ready, memory, xds lost, engine lost, in any order
		if addr := metricsAddr.FindStringSubmatch(lines.Text()); addr != nil {
			base = "http://" + addr[1]
		}
	}
	go func() { _, _ = io.Copy(io.Discard, logs) }()
	var list []obs.Condition
	for len(list) < 2 { // the log is a moment ahead of the list
		resp, err := http.Get(base + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("status %d, %v", resp.StatusCode, err)
		}
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	if list[0].Code != "xds_unreachable" || list[1].Code != "engine_unreachable" || list[0].Next == "" {
		t.Errorf("conditions %+v", list)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBadFlagsAllAtOnce(t *testing.T) {
	err := run(t.Context(), []string{"-node", "A_b", "-engine", "x", "-metrics", "127.0.0.1:99999", "-capacity", "-1", "-interval", "1ms", "-timeout", "1ms",
		"-zone", strings.Repeat("z", 64)}, io.Discard)
	if err == nil || program.ExitCode(err) != program.ExitUsage {
		t.Fatalf("run() = %v, exit status %d", err, program.ExitCode(err))
	}
	for _, want := range []string{
		`-node: "A_b"; must be 1 to 63 lower-case letters, digits or "-"`,
		`-engine: "x"; must be ip:port`, `-metrics: "127.0.0.1:99999"; must be ip:port`, `-xds: ""; must be ip:port`, "-capacity: -1; must be 0, or ≥ 0.001", "-interval: 1ms; must be ≥ 50ms",
		"-timeout: 1ms; must be ≥ 200ms", "-zone: 64 bytes; must be ≤ 63",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
}

func TestUnknownFlagIsUsage(t *testing.T) {
	for _, args := range [][]string{{"-frob"}, {"word"}} {
		if err := run(t.Context(), args, io.Discard); program.ExitCode(err) != program.ExitUsage {
			t.Errorf("run(%q) = %v, exit status %d", args, err, program.ExitCode(err))
		}
	}
	if err := run(t.Context(), []string{"-help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("run(-help) = %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = run(t.Context(), []string{"-node", "node-a", "-engine", "127.0.0.1:1", "-xds", "127.0.0.1:1", "-metrics", ln.Addr().String()}, io.Discard)
	var hint *obs.Hint
	if program.ExitCode(err) != program.ExitInUse || !errors.As(err, &hint) {
		t.Errorf("run() = %v, exit status %d; want a hint and %d", err, program.ExitCode(err), program.ExitInUse)
	}
}

func TestCheckSaysWhatIsRead(t *testing.T) {
	var b strings.Builder
	err := run(t.Context(), []string{"-check", "-node", "node-a", "-nvml", "/nowhere/libnvidia-ml.so.1"}, &b)
	if err == nil || program.ExitCode(err) != program.ExitRuntime || !strings.Contains(err.Error(), "nvml: no NVML library") {
		t.Errorf("run() = %v; want that the named library is not there", err)
	}
	for _, want := range []string{"node node-a: readings come from HOST", "host: ", "driver: none"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("wrote\n%slacks %q", b.String(), want)
		}
	}
}

func TestCheckReadsTheGPUs(t *testing.T) {
	dir := t.TempDir()
	lib, state := filepath.Join(dir, "libnvidia-ml.so.1"), filepath.Join(dir, "state")
	out, err := exec.Command("gcc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", lib, "internal/gpu/testdata/fakenvml.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	figures := "driver 580.95\ncount 1\n0.uuid GPU-aaaa\n0.name Fake H200\n0.util 55\n0.memory.total 1073741824\n0.memory.used 536870912\n0.temperature 71\n"
	if err := os.WriteFile(state, []byte(figures), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAKE_NVML_STATE", state)
	var b strings.Builder
	if err := run(t.Context(), []string{"-check", "-node", "node-a", "-nvml", lib}, &b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"node node-a: readings come from NVML", "driver: 580.95, 1 GPUs, read in ",
		"GPU GPU-aaaa: Fake H200, 55 % used, 512 of 1024 MiB, 71 °C, 0 W, missing: power, clock, clocks_event_reasons, ecc_uncorrected",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("wrote\n%slacks %q", b.String(), want)
		}
	}
}

func TestVersion(t *testing.T) {
	var b strings.Builder
	if err := run(t.Context(), []string{"-version"}, &b); err != nil || !strings.HasPrefix(b.String(), "nodeagent ") {
		t.Errorf("run(-version) = %v, wrote %q", err, b.String())
	}
}
