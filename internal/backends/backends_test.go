package backends

import (
	"slices"
	"testing"
)

func TestArgumentsThatEngineSets(t *testing.T) {
	refused := []string{
		"--port", "--port=1", "--host", "--served_model_name", "--max-model", "--ssl-key=x", "--config", "-tp", "-tp=2", "-n2", "-r", "-dp",
		"--kv-events-config.enable_kv_cache_events=false", "--tensor_parallel_size=2", "--api-key", "--enable-prompt",
	}
	taken := []string{
		"--dtype", "float32", "--enforce-eager", "--model-impl", "--max-num-batched-tokens", "--config-format", "--block-size=32", "-O2", "-q",
		"--compilation-config", `{"mode":1}`, "--enable-lora", "-ep", "-cc.mode=1", "--no-enable-prefix-caching",
	}
	for _, arg := range refused {
		if vllmWhy(arg) == "" {
			t.Errorf("%s is taken", arg)
		}
	}
	for _, arg := range taken {
		if why := vllmWhy(arg); why != "" {
			t.Errorf("%s is refused: %s", arg, why)
		}
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		Settings
		want []Field
	}{
		{"llama.cpp on two nodes", Settings{Kind: LlamaCpp, Weights: "w", ContextTokens: 4096, Stages: 2}, nil},
		{"vLLM on four ranks", Settings{Kind: VLLM, Weights: "w", ContextTokens: 4096, TensorParallel: 2, PipelineParallel: 2, Stages: 1}, nil},
		{"an external server", Settings{Kind: OpenAI, URL: "http://127.0.0.1:1/v1/", ServedModel: "org/m"}, nil},
		{"vLLM on two nodes", Settings{Kind: VLLM, Weights: "w", ContextTokens: 4096, Stages: 2}, []Field{Stages}},
		{"llama.cpp with ranks and arguments", Settings{Kind: LlamaCpp, Weights: "w", ContextTokens: 4096, TensorParallel: 2, DataParallel: 2, Args: []string{"-x"}}, []Field{TensorParallel, DataParallel, Args}},
		{"nothing said", Settings{Kind: VLLM}, []Field{Weights, ContextTokens}},
		{"a file's URL", Settings{Kind: OpenAI, URL: "file:///x"}, []Field{URL}},
		{"a URL with a password", Settings{Kind: OpenAI, URL: "http://u:p@h"}, []Field{URL}},
		{"no kind", Settings{}, []Field{Kind}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []Field
			for _, f := range Check(tt.Settings) {
				got = append(got, f.Field)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("faults %v, want %v", Check(tt.Settings), tt.want)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"http://h:1": "http://h:1", "http://h:1/": "http://h:1", "http://h:1/v1": "http://h:1", "https://h/a/v1/": "https://h/a", "http://[::1]:8": "http://[::1]:8",
	} {
		if u, err := ParseURL(text); err != nil || u.String() != want {
			t.Errorf("%s: %v %v, want %s", text, u, err, want)
		}
	}
}
