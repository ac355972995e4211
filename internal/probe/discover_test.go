package probe

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/scrape"
)

func TestDiscover(t *testing.T) {
	const at = "10.0.0.1:8000"
	models := `{"object":"list","data":[{"id":"lora","parent":"base"},{"id":"base","parent":null},{"id":"base"},{"id":""}]}`
	tests := []struct {
		name    string
		answers map[string]string // by URL behind http://; what is missing is 404
		err     error             // of all
		pages   []string
		want    Discovered
	}{
		{
			name:    "vLLM with an adapter",
			answers: map[string]string{at + "/metrics": "# HELP\nvllm:num_requests_running 0\n", at + "/v1/models": models},
			want:    Discovered{Type: "vllm", Metrics: "http://" + at + "/metrics", Models: []string{"base", "lora"}},
		},
		{
			name:    "llama.cpp",
			answers: map[string]string{at + "/metrics": "llamacpp:requests_processing 0\n"},
			want:    Discovered{Type: "llamacpp", Metrics: "http://" + at + "/metrics"},
		},
		{
			name:    "SGLang",
			answers: map[string]string{at + "/metrics": "# TYPE x\nsglang:num_running_reqs 0\n"},
			want:    Discovered{Type: "sglang", Metrics: "http://" + at + "/metrics"},
		},
		{
			name:    "trtllm-serve, whose page is elsewhere",
			answers: map[string]string{at + "/prometheus/metrics": "trtllm_num_requests_running 0\n"},
			want:    Discovered{Type: "tensorrtllm", Metrics: "http://" + at + "/prometheus/metrics"},
		},
		{
			name:    "Triton, on a port of its own",
			answers: map[string]string{"10.0.0.1:8002/metrics": "nv_trt_llm_request_metrics{x=\"y\"} 0\n", at + "/metrics": "go_goroutines 3\n"},
			want:    Discovered{Type: "triton", Metrics: "http://10.0.0.1:8002/metrics"},
		},
		{
			name:    "where the operator says that metrics are",
			answers: map[string]string{"10.0.0.1:9/x": "vllm:num_requests_running 0\n"},
			pages:   []string{"http://10.0.0.1:9/x"},
			want:    Discovered{Type: "vllm", Metrics: "http://10.0.0.1:9/x"},
		},
		{name: "some web server", answers: map[string]string{at + "/metrics": "<html>", at + "/v1/models": "<html>"}},
		{name: "nobody", err: scrape.ErrGone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			get := func(_ context.Context, r *http.Request, buf []byte) ([]byte, error) {
				if tt.err != nil {
					return buf[:0], tt.err
				}
				text, ok := tt.answers[r.URL.Host+r.URL.Path]
				if !ok {
					return buf[:0], scrape.StatusError(404)
				}
				return append(buf[:0], text...), nil
			}
			got, err := Discover(t.Context(), get, at, tt.pages)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzModelsOf(f *testing.F) {
	f.Add([]byte(`{"data":[{"id":"m","parent":"b"}]}`))
	f.Fuzz(func(t *testing.T, list []byte) {
		if got := modelsOf(list); len(got) > maxModels {
			t.Errorf("%d models", len(got))
		}
	})
}

func TestAskForModels(t *testing.T) {
	const at = "10.0.0.1:8000"
	tests := []struct {
		name   string
		typ    string
		models []string
		answer string // empty: 404
		want   string // empty: nothing is wrong
	}{
		{"all", "vllm", []string{"a", "b"}, `{"data":[{"id":"b","parent":"a"},{"id":"a"},{"id":"c"}]}`, ""},
		{"an adapter that is not loaded", "vllm", []string{"a", "b"}, `{"data":[{"id":"a"}]}`, `it lists other models: not "b"`},
		{"another", "openai", []string{"qwen"}, `{"data":[{"id":"Qwen/Qwen3-8B"}]}`, `it lists other models: not "qwen", but "Qwen/Qwen3-8B"`},
		{"many others", "openai", []string{"x"}, `{"data":[{"id":"1"},{"id":"2"},{"id":"3"},{"id":"4"},{"id":"5"},{"id":"6"}]}`,
			`it lists other models: not "x", but "1", "2", "3", "4" and 2 more`},
		{"a llama-server takes any name for its one model", "llamacpp", []string{"x"}, `{"data":[{"id":"/models/x.gguf"}]}`, ""},
		{"a llama-server with several does not", "llamacpp", []string{"x"}, `{"data":[{"id":"y"},{"id":"z"}]}`, `it lists other models: not "x", but "y", "z"`},
		{"it does not say", "openai", []string{"x"}, "", ""},
		{"it says something else", "openai", []string{"x"}, `["y"]`, ""},
		{"it lists none", "openai", []string{"x"}, `{"data":[]}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			get := func(_ context.Context, r *http.Request, buf []byte) ([]byte, error) {
				switch {
				case r.URL.Path == "/metrics":
					return append(buf[:0], "vllm:num_requests_running 0\nllamacpp:requests_processing 0\n"...), nil
				case tt.answer == "" || r.URL.String() != "http://"+at+"/v1/models":
					return buf, scrape.StatusError(404)
				}
				return append(buf[:0], tt.answer...), nil
			}
			e := Endpoint{Endpoint: config.Endpoint{Address: at, Type: tt.typ, Models: tt.models, Metrics: "http://" + at + "/metrics"}}
			got := ""
			if err := Ask(t.Context(), get, e); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Ask() = %q, want %q", got, tt.want)
			}
		})
	}
}
