package llamacpp

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

func TestParseUsage(t *testing.T) {
	const timings = `"timings":{"cache_n":24,"prompt_n":15,"prompt_ms":96.5,"predicted_n":48,"predicted_ms":670.25}`
	timed := backend.Usage{Prompt: 39, Cached: 24, Completion: 48, Prefill: 96500 * time.Microsecond, Decode: 670250 * time.Microsecond, Prefilled: 15, Decoded: 48}
	tests := []struct {
		name, text string
		want       backend.Usage
		ok         bool
	}{
		{name: "chat completion", text: `{"choices":[],"usage":{"prompt_tokens":39,"completion_tokens":48,"prompt_tokens_details":{"cached_tokens":24}},` + timings + `}`, want: timed, ok: true},
		{
			name: "two choices, of which the timings know one",
			text: `{"usage":{"prompt_tokens":39,"completion_tokens":96,"prompt_tokens_details":{"cached_tokens":24}},` + timings + `}`,
			want: backend.Usage{Prompt: 39, Cached: 24, Completion: 96, Prefill: timed.Prefill, Decode: timed.Decode, Prefilled: 15, Decoded: 48}, ok: true,
		},
		{name: "stream", text: "data: {\"delta\":{}," + timings + "}\n\ndata: [DONE]\n\n", want: timed, ok: true},
		{
			name: "responses without timings",
			text: `{"usage":{"input_tokens":31,"output_tokens":4,"total_tokens":35,"input_tokens_details":{"cached_tokens":30}}}`,
			want: backend.Usage{Prompt: 31, Cached: 30, Completion: 4}, ok: true,
		},
		{name: "messages", text: `{"usage":{"cache_read_input_tokens":30,"input_tokens":1,"output_tokens":2}}`, want: backend.Usage{Prompt: 31, Cached: 30, Completion: 2}, ok: true},
		{name: "embeddings", text: `{"usage":{"prompt_tokens":7,"total_tokens":7},"data":[]}`, want: backend.Usage{Prompt: 7}, ok: true},
		{name: "text that looks like it", text: `{"content":"\"timings\":{\"cache_n\":9}"}`},
		{name: "nothing", text: ``},
		{name: "cut off", text: `{"timings":{"cache_n":2`},
		{name: "negative", text: `{"timings":{"cache_n":-2}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseUsage([]byte(tt.text))
			if ok != tt.ok || got != tt.want {
				t.Errorf("ParseUsage() = %+v, %v; want %+v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
	if s := timed.Speed(); int(s.Prefill) != 155 || int(s.Decode) != 71 {
		t.Errorf("speed %+v", s)
	}
}

func FuzzParseUsage(f *testing.F) {
	f.Add([]byte(`"timings":{"cache_n":24,"prompt_n":15,"prompt_ms":1e300}`))
	f.Add([]byte(`"usage":{"prompt_tokens":7}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, ok := parseUsage(b); ok && (u.Prefill < 0 || u.Decode < 0 || u.Speed().Decode < 0) {
			t.Errorf("%+v", u)
		}
	})
}

func TestParseError(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   backend.Error
	}{
		{
			name: "prompt over the context", status: 400,
			body: `{"error":{"code":400,"message":"request (9000 tokens) exceeds","type":"exceed_context_size_error","n_ctx":4096}}`,
			want: backend.Error{Status: 400, Message: "request (9000 tokens) exceeds", Type: "invalid_request_error", Code: "context_length_exceeded"},
		},
		{
			name: "input of embeddings over the batch is not the server's fault", status: 500,
			body: `{"error":{"code":500,"message":"input (2401 tokens) is too large to process. increase the physical batch size (current batch size: 2048)","type":"server_error"}}`,
			want: backend.Error{Status: 400, Message: "input: 2401 tokens; this model takes at most 2048 of one input of embeddings: split it", Type: "invalid_request_error", Code: "context_length_exceeded", Param: "input"},
		},
		{
			name: "what the model can't do is not the server's fault", status: 500,
			body: `{"error":{"code":500,"message":"image input is not supported - hint: …","type":"server_error"}}`,
			want: backend.Error{Status: 400, Message: "image input is not supported - hint: …", Type: "invalid_request_error", Code: "not_supported"},
		},
		{
			name: "messages that can't be read are the client's fault", status: 500,
			body: `{"error":{"code":500,"message":"Failed to parse messages: Missing 'role' in message","type":"server_error"}}`,
			want: backend.Error{Status: 400, Message: "Failed to parse messages: Missing 'role' in message", Type: "invalid_request_error", Code: "invalid_value"},
		},
		{
			name: "bad parameter", status: 400, body: `{"error":{"message":"no","type":"invalid_request_error"}}`,
			want: backend.Error{Status: 400, Message: "no", Type: "invalid_request_error", Code: ""},
		},
		{name: "not JSON", status: 502, body: `<html>`, want: backend.Error{Status: 502, Message: "the backend answered Bad Gateway", Type: "server_error", Code: "backend_error"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parseError(tt.status, []byte(tt.body))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFindListener(t *testing.T) {
	const table = "  sl  local_address rem_address   st\n" +
		"   0: 0100007F:C351 00000000:0000 0A 00000000:00000000\n" +
		"   1: 0100007F:C352 0100007F:C351 01 00000000:00000000\n" +
		"   2: 00000000:C353 00000000:0000 0A 00000000:00000000\n"
	for address, want := range map[string]bool{
		"127.0.0.1:50001": true, "127.0.0.1:50002": false, "127.0.0.1:50003": true, "127.0.0.2:50001": false,
	} {
		if got, err := findListener(strings.NewReader(table), netip.MustParseAddrPort(address)); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", address, got, err, want)
		}
	}
	six, err := parseSocket("00000000000000000000000001000000:0050")
	if err != nil || six != netip.MustParseAddrPort("[::1]:80") {
		t.Errorf("%v, %v", six, err)
	}
}

func TestListensSeesARealListener(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err) // a machine without IPv6
			continue
		}
		if ok, err := listens(ln.Addr().String()); !ok || err != nil {
			t.Errorf("%v: %v, %v", ln.Addr(), ok, err)
		}
		_ = ln.Close()
		if ok, _ := listens(ln.Addr().String()); ok {
			t.Errorf("%v listens after its end", ln.Addr())
		}
	}
}

func FuzzFindListener(f *testing.F) {
	f.Add("head\n 0: 0100007F:C351 00000000:0000 0A x\n")
	f.Fuzz(func(_ *testing.T, table string) {
		_, _ = findListener(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:50001"))
	})
}

func replica(stages int) *enginepb.Assignment {
	a := &enginepb.Assignment{Model: "smollm2", Backend: &enginepb.Backend{Weights: "weights.go", ContextTokens: 4096, Slots: 4, Threads: 1}}
	for i := range stages {
		a.Stages = append(a.Stages, &enginepb.Stage{ShardAddress: "127.0.0.1:" + []string{"1", "2"}[i], Share: float32(1 + i)})
	}
	return a
}

func TestNativeArguments(t *testing.T) {
	p := Programs{LlamaServer: "llama-server", RPCServer: "rpc-server", BackendAddress: "127.0.0.1:9", ShardAddress: "127.0.0.1:1"}
	cmd, err := p.head(replica(2))
	if err != nil {
		t.Fatal(err)
	}
	const want = "-m weights.go --alias smollm2 --host 127.0.0.1 --port 9 -np 4 -c 16384 -b 2048 -ub 2048 -t 1 -tb 1 --threads-http 16 --cache-ram 256 " +
		"--embeddings --pooling mean -fa on --jinja --metrics --slots --no-warmup --no-webui --fit off " +
		"--rpc 127.0.0.1:1,127.0.0.1:2 -ngl 99 -ts 1,2"
	if diff := cmp.Diff(want, strings.Join(cmd.Args[1:], " ")); diff != "" {
		t.Error(diff)
	}
	missing := replica(1)
	missing.Backend.Weights = "/nowhere/w.gguf"
	if _, err := p.head(missing); err == nil || !strings.Contains(err.Error(), "/nowhere/w.gguf") {
		t.Errorf("missing weights: %v", err)
	}
	if cmd, _ = p.shard(replica(2)); strings.Join(cmd.Args, " ") != "rpc-server -H 127.0.0.1 -p 1 -t 1" {
		t.Error(cmd.Args)
	}
}

func TestGlueIsGivenAll(t *testing.T) {
	p := Programs{Runtime: "/run", BackendAddress: "127.0.0.1:9", ShardAddress: "127.0.0.1:1"}
	cmd, err := p.head(replica(2))
	if err != nil {
		t.Fatal(err)
	}
	var got config
	if err := json.Unmarshal([]byte(cmd.Args[3]), &got); err != nil {
		t.Fatal(err)
	}
	want := config{
		Runtime: "/run", Address: "127.0.0.1:9", Threads: 1, Weights: "weights.go", Model: "smollm2", Slots: 4, ContextTokens: 4096, BatchTokens: 2048,
		HTTPThreads: 16, CacheMiB: 256, Shards: []stage{{"127.0.0.1:1", 1}, {"127.0.0.1:2", 2}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if b, _ := io.ReadAll(cmd.Stdin); string(b) != glue {
		t.Error("the interpreter is not fed the glue")
	}
	if cmd, _ = p.shard(replica(2)); cmd.Args[2] != "worker" {
		t.Error(cmd.Args)
	}
	if cmd, _ = p.head(replica(1)); strings.Contains(cmd.Args[3], "127.0.0.1:1\"") {
		t.Error("a whole replica has shards:", cmd.Args[3])
	}
}

func TestKindAsksTheServer(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /props", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"chat_template_caps":{"supports_tools":true}}`)
	})
	mux.HandleFunc("GET /slots", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `[{"id":0},{"id":1,"n_prompt_tokens":30,"is_processing":true},{"id":2,"n_prompt_tokens":12}]`)
	})
	reply := `{"content":"a","timings":{"prompt_n":10,"prompt_ms":100,"predicted_n":8,"predicted_ms":50}}`
	mux.HandleFunc("POST /completion", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, reply) })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	r := New(Programs{BackendAddress: srv.Listener.Addr().String()}, srv.Client().Transport)
	ctx := context.Background()
	if r.healthy(ctx) != nil {
		t.Error("not healthy")
	}
	if l, err := r.Load(ctx, nil); l != (backend.Load{Used: 42, Running: 1}) || err != nil {
		t.Errorf("Load() = %v, %v", l, err)
	}
	if s, err := r.Probe(ctx, nil, 4); s != (backend.Speed{Prefill: 100, Decode: 160}) || err != nil {
		t.Errorf("Probe() = %v, %v", s, err)
	}
	reply = `{"content":"","timings":{}}`
	if _, err := r.Probe(ctx, nil, 4); err != backend.ErrNoToken {
		t.Errorf("a probe without a token: %v", err)
	}
	srv.Close()
	if r.healthy(ctx) == nil {
		t.Error("healthy after its end")
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	if err := (Programs{Runtime: dir}).Check(); err == nil || !strings.Contains(err.Error(), "xllamacpp") {
		t.Errorf("an empty runtime: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "xllamacpp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"xllamacpp/__init__.py", "libggml-rpc.so"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Programs{Runtime: dir}).Check(); err != nil {
		t.Error(err)
	}
	t.Setenv("PATH", dir)
	if err := (Programs{Runtime: dir}).Check(); err == nil || !strings.Contains(err.Error(), "python") {
		t.Errorf("no python: %v", err)
	}
	if err := (Programs{LlamaServer: "a", RPCServer: "b"}).Check(); err != nil {
		t.Errorf("native programs need no runtime: %v", err)
	}
	if err := (Programs{}).Check(); err != nil {
		t.Errorf("a node without llama.cpp: %v", err)
	}
}
