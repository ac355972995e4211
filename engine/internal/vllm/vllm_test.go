package vllm

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/scrape"
)

func assignment(weights string) *enginepb.Assignment {
	return &enginepb.Assignment{
		Model: "tiny", Stages: []*enginepb.Stage{{}},
		Backend: &enginepb.Backend{Kind: enginepb.Backend_VLLM, Weights: weights, ContextTokens: 4096, Slots: 8, Threads: 2},
	}
}

// environment is a Python environment with a command of vLLM's name.
func environment(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "vllm"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestArguments(t *testing.T) {
	p := Program{Path: environment(t), Address: "127.0.0.1:9"}
	a := assignment(t.TempDir())
	a.Backend.TensorParallel, a.Backend.DataParallel, a.Backend.Args = 2, 1, []string{"--dtype", "float32"}
	cmd, err := p.head(a, "127.0.0.1:10")
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(p.Path, "bin", "vllm") + " serve " + a.Backend.Weights + " --host 127.0.0.1 --port 9 --served-model-name tiny --max-model-len 4096 " +
		"--max-num-seqs 9 --enable-prompt-tokens-details --tensor-parallel-size 2 " +
		`--kv-events-config {"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://127.0.0.1:10"} --dtype float32`
	if diff := cmp.Diff(want, strings.Join(cmd.Args[3:], " ")); diff != "" {
		t.Error(diff)
	}
	if cmd.Args[2] != keeper || !slices.Contains(cmd.Env, "OMP_NUM_THREADS=2") {
		t.Errorf("%q, %q", cmd.Args[:3], cmd.Env)
	}
	if cmd, err = p.head(a, ""); err != nil || slices.Contains(cmd.Args, "--kv-events-config") {
		t.Errorf("without events: %v %v", err, cmd)
	}
	a.Backend.Weights = "/nowhere/model"
	if _, err := p.head(a, ""); err == nil || !strings.Contains(err.Error(), "/nowhere/model") {
		t.Errorf("missing weights: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for path, want := range map[string]string{"": "", environment(t): "", "/nowhere": "vllm: ", t.TempDir(): "vllm: "} {
		if err := (Program{Path: path}).Check(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
	k := New(Program{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err := k.Check(assignment("/m")); err != errNone {
		t.Errorf("no vLLM: %v", err)
	}
}

func TestCapabilities(t *testing.T) {
	a := assignment("/m")
	a.Backend.Args, a.Backend.PipelineParallel = []string{"--enable_lora", "--tool-call-parser=hermes"}, 2
	want := &enginepb.Capabilities{ContextTokens: 4096, Lora: true, Tools: true, TensorParallel: 1, PipelineParallel: 2, DataParallel: 1, KvEvents: true}
	if got := New(Program{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)).Capabilities(a); got.String() != want.String() {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestKindAsksTheServer, which shows the metrics of a real one.
func TestKindAsksTheServer(t *testing.T) {
	page, err := os.ReadFile("../../../internal/scrape/testdata/vllm-0.32.txt")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) })
	reply := "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n"
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, reply) })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	k := New(Program{Address: srv.Listener.Addr().String()}, srv.Client().Transport, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, a := t.Context(), assignment("/m")
	if err := k.healthy(ctx); err != nil {
		t.Error(err)
	}
	s := series.Scan(page)
	l, err := k.Load(ctx, a)
	if err != nil || l.Total != uint64(s.KVTokens) || l.Total == 0 || l.Speed != (backend.Speed{}) {
		t.Errorf("Load() = %+v, %v", l, err)
	}
	if l, err = k.Load(ctx, a); err != nil || l.Speed != (backend.Speed{}) {
		t.Errorf("nothing has happened since, but %+v, %v", l, err)
	}
	if got, err := k.Probe(ctx, a, 8); err != nil || got.Prefill <= 0 {
		t.Errorf("Probe() = %v, %v", got, err)
	}
	reply = "data: [DONE]\n\n"
	if _, err := k.Probe(ctx, a, 8); err != backend.ErrNoToken {
		t.Errorf("a probe without a token: %v", err)
	}
	page = []byte("# nothing\n")
	if _, err := k.Load(ctx, a); err == nil {
		t.Error("a page without the series is taken")
	}
	if _, err := k.Process(backend.Shard, a); err != backend.ErrStages {
		t.Errorf("a shard: %v", err)
	}
}

func TestSpeedOfWhatHasEnded(t *testing.T) {
	got := speed(scrape.Since{Requests: 2, Prompt: 130, Cached: 30, Output: 52, PrefillMs: 500, DecodeMs: 1000})
	if want := (backend.Speed{Prefill: 200, Decode: 50}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := speed(scrape.Since{Prompt: 7, Output: 7, PrefillMs: 1, DecodeMs: 1}); got != (backend.Speed{}) {
		t.Errorf("%+v of a few tokens", got)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		status int
		body   string
		want   backend.Error
	}{
		{400, `{"error":{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","param":"input_tokens","code":400}}`,
			backend.Error{Status: 400, Message: "This model's maximum context length is 4096 tokens.", Type: "invalid_request_error", Code: "context_length_exceeded", Param: "input_tokens"}},
		{500, `{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","code":500}}`,
			backend.Error{Status: 503, Message: "the backend was lost: EngineCore encountered an issue.", Type: "server_error", Code: "backend_lost"}},
		{404, `{"detail":"Not Found"}`, backend.Error{Status: 404, Message: "Not Found", Type: "invalid_request_error"}},
	}
	k := New(Program{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, k.Error(tt.status, []byte(tt.body))); diff != "" {
			t.Error(diff)
		}
	}
}
