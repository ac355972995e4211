package apis

import "testing"

func TestOf(t *testing.T) {
	tests := []struct {
		method, path string
		want         API
	}{
		{"POST", "/v1/chat/completions", Chat},
		{"POST", "/chat/completions?x=/v1/embeddings", Chat},
		{"GET", "/v1/chat/completions", Other},
		{"POST", "/v1/completions", Completions},
		{"POST", "/v1/chat/completions/", Chat},
		{"POST", "/v1/chat/completions/?x=1", Chat},
		{"POST", "/", Other},
		{"POST", "/v1/embeddings", Embeddings},
		{"POST", "/responses", Responses},
		{"POST", "/v1/responses/input_tokens", InputTokens},
		{"POST", "/v1/responses/compact", Other},
		{"POST", "/v1/messages", Messages},
		{"POST", "/v1/messages/count_tokens", CountTokens},
		{"POST", "/v1/messages/batches", Other},
		{"POST", "/v2/rerank", Rerank},
		{"POST", "/reranking", Rerank},
		{"POST", "/score", Score},
		{"POST", "/tokenize", Tokenize},
		{"POST", "/v1/detokenize", Detokenize},
		{"POST", "/v1/audio/transcriptions", Transcriptions},
		{"POST", "/audio/translations", Translations},
		{"POST", "/v1/v1/chat/completions", Chat},
		{"GET", "/v1/responses/abc", Other},
		{"POST", "/v1x/chat/completions", Chat},
		{"POST", "/v1x-chat/completionsx", Other},
		{"POST", "/llm/team-a/v1/chat/completions///?x=1", Chat},
		{"POST", "//v1/chat/completions", Chat},
		{"POST", "/openai/deployments/gpt/chat/completions?api-version=2024-10-21", Chat},
		{"POST", "/openai/deployments/gpt/embeddings", Embeddings},
		{"POST", "/v1beta/openai/chat/completions", Chat},
		{"POST", "/api/anthropic/v1/messages", Messages},
		{"POST", "/api/v1/messages/count_tokens", CountTokens},
		{"POST", "/rerank/api/v2/rerank", Rerank},
		{"POST", "/whisper/v1/audio/transcriptions", Transcriptions},
		{"POST", "/v1/threads/thread_7/messages", Other},
		{"POST", "/api/v1/threads/7/messages/", Other},
		{"POST", "/v1/chat/completions/chatcmpl-7", Other},
		{"POST", "/v1/messages/batches/7/results", Other},
		{"POST", "", Other},
	}
	for _, tt := range tests {
		if got := Of(tt.method, tt.path); got != tt.want {
			t.Errorf("Of(%s %s) = %v, want %v", tt.method, tt.path, got, tt.want)
		}
	}
}

func TestDialectOf(t *testing.T) {
	tests := []struct {
		path string
		want Dialect
	}{
		{"/v1/messages", Anthropic},
		{"/messages?beta=true", Anthropic},
		{"/api/v1/messages/", Anthropic},
		{"/v1/threads/7/messages", OpenAI},
		{"/v1/messages/batches/7", Anthropic},
		{"/v1/messagesx", OpenAI},
		{"/v1/chat/completions", OpenAI},
		{"/", OpenAI},
		{"", OpenAI},
		{"*", OpenAI},
	}
	for _, tt := range tests {
		if got := DialectOf(tt.path); got != tt.want {
			t.Errorf("DialectOf(%q) = %v, want %v", tt.path, got, tt.want)
		}
	}
}

// TestTableIsWhole checks that a new constant has a row, and that no two share a path.
func TestTableIsWhole(t *testing.T) {
	paths := map[string]API{}
	for a := Chat; a < Len; a++ {
		r := a.Row()
		if r.Name == "" || r.Path == "" {
			t.Errorf("operation %d: %+v", a, r)
		}
		for _, p := range append([]string{r.Path}, r.Aliases...) {
			if other, ok := paths[p]; ok {
				t.Errorf("%s is a path of %v and of %v", p, other, a)
			}
			paths[p] = a
			if Of("POST", p) != a {
				t.Errorf("Of(%s) is not %v", p, a)
			}
		}
	}
}

func TestAccepts(t *testing.T) {
	tests := []struct {
		contentType string
		json, form  bool
	}{
		{"", true, false},
		{"application/json", true, false},
		{"Application/JSON; charset=utf-8", true, false},
		{"application/vnd.x+json", true, false},
		{"multipart/form-data; boundary=b", false, true},
		{"Multipart/Form-Data", false, true},
		{"multipart/mixed; boundary=b", false, false},
		{"text/plain", false, false},
	}
	for _, tt := range tests {
		if JSON.Accepts(tt.contentType) != tt.json || Form.Accepts(tt.contentType) != tt.form {
			t.Errorf("Accepts(%q): JSON %v, form %v", tt.contentType, JSON.Accepts(tt.contentType), Form.Accepts(tt.contentType))
		}
	}
}

func TestModelIn(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/realtime?model=a":                           "a",
		"/v1/x?y=1&model=org%2Fa+b&model=c":              "org/a b",
		"/v1/x?models=a":                                 "",
		"/v1/x?model=":                                   "",
		"/v1/x?model=%zz":                                "",
		"/openai/deployments/m%2F7/chat/completions":     "m/7",
		"/openai/deployments/m/embeddings?api-version=1": "m",
		"/openai/deployments/m":                          "",
		"/v1/chat/completions":                           "",
		"":                                               "",
	} {
		if got := ModelIn(path); got != want {
			t.Errorf("ModelIn(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestListed(t *testing.T) {
	for path, want := range map[string]struct {
		list  bool
		model string
	}{
		"/v1/models":                 {true, ""},
		"/v1/models/?limit=20":       {true, ""},
		"/models":                    {true, ""},
		"/llm/v1/models":             {true, ""},
		"/v1/models/a":               {true, "a"},
		"/v1/models/org/a":           {true, "org/a"},
		"/v1/models/org%2Fa/":        {true, "org/a"},
		"/x/v1/models/a":             {true, "a"},
		"/models/a":                  {true, "a"},
		"/x/models":                  {false, ""},
		"/v1/modelsx":                {false, ""},
		"/v1/fine_tuning/models/abc": {false, ""},
		"":                           {false, ""},
	} {
		if list, model := Listed(path); list != want.list || list && model != want.model {
			t.Errorf("Listed(%q) = %v, %q, want %+v", path, list, model, want)
		}
	}
}

func TestStored(t *testing.T) {
	for path, want := range map[string]bool{
		"/v1/responses/resp_1": true, "/v1/responses/resp_1/input_items?limit=2": true, "/responses/resp_1/cancel": true,
		"/v1/conversations": true, "/v1/conversations/conv_1/items/": true, "/llm/v1/conversations/c": true,
		"/v1/responses": false, "/v1/responses/input_tokens": false, "/v1/chat/completions": false, "/v1/files/f": false, "": false,
		"/v1/conversations/7/messages": true,
	} {
		if got := Stored(path); got != want {
			t.Errorf("Stored(%q) = %v, want %v", path, got, want)
		}
	}
}
