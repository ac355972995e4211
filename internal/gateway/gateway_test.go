package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fake is the admin port of an Envoy.
type fake struct {
	live, listens, failed atomic.Bool
	requests, asked       atomic.Int64 // asked: how often for what is in flight
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + r.URL.Path {
	case "GET/ready":
		if !f.live.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	case "GET/listeners":
		if f.listens.Load() {
			fmt.Fprintln(w, "gateway::0.0.0.0:8080")
		}
	case "POST/healthcheck/fail":
		f.failed.Store(true)
	case "GET/stats":
		f.asked.Add(1)
		fmt.Fprintf(w, "http.admin.downstream_rq_active: 1\nhttp.gateway.downstream_rq_active: %d\nhttp.gateway.downstream_cx_active: %[1]d\n", f.requests.Load())
	case "GET/stats/prometheus":
		fmt.Fprintln(w, "envoy_server_live 1")
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestGatewayEndsWhenEnvoyIsEmpty(t *testing.T) {
	f := &fake{}
	envoy := httptest.NewServer(f)
	defer envoy.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probes := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ready, lines := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Admin: strings.TrimPrefix(envoy.URL, "http://"), Probes: probes, Grace: time.Minute,
			Log: slog.New(slog.NewTextHandler(lines, nil)),
		})
		lines.Close()
	}()
	if _, err := ready.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, ready) }()

	for _, tt := range []struct {
		name, want    string
		live, listens bool
		code          int
	}{
		{name: "starting", want: "503", code: 503},
		{name: "no listener", live: true, want: "xds has published none", code: 503},
		{name: "serving", live: true, listens: true, want: "ok", code: 200},
	} {
		f.live.Store(tt.live)
		f.listens.Store(tt.listens)
		if code, body := get(t, "http://"+probes+"/readyz"); code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d %s", tt.name, code, body)
		}
	}
	if _, body := get(t, "http://"+probes+"/metrics"); body != "envoy_server_live 1\n" {
		t.Errorf("/metrics %q", body)
	}

	f.requests.Store(1)
	cancel()
	for f.asked.Load() < 2 {
		if code, _ := get(t, "http://"+probes+"/healthz"); code != 200 {
			t.Fatalf("not alive while it drains: %d", code)
		}
	}
	if code, body := get(t, "http://"+probes+"/readyz"); code != 503 || !f.failed.Load() {
		t.Errorf("draining: %d %s, envoy has been told %v", code, body, f.failed.Load())
	}
	select {
	case err := <-done:
		t.Fatalf("ended with a request in flight: %v", err)
	default:
	}
	f.requests.Store(0)
	http.DefaultClient.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestGatewayDoesNotWaitForAnEnvoyThatIsGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Run(ctx, Options{Admin: "127.0.0.1:1", Probes: "127.0.0.1:0", Linger: time.Hour, Grace: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Error(err)
	}
}

func TestGauge(t *testing.T) {
	const rq = ".downstream_rq_active"
	for line, want := range map[string]int{
		"http.gateway.downstream_rq_active: 3": 3,
		"http.admin.downstream_rq_active: 1":   0,
		"http.gateway.downstream_cx_active: 4": 0,
		"listener.x.downstream_rq_active: 2":   0,
		"http.gateway.downstream_rq_active: x": 0,
		"":                                     0,
	} {
		if got := gauge(line, rq); got != want {
			t.Errorf("gauge(%q) = %d, want %d", line, got, want)
		}
	}
}
