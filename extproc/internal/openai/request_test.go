package openai

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seen is a Request as the tests compare it.
type seen struct {
	Model     string
	Stream    bool
	MaxTokens int
	Choices   int
	Messages  []string
	Prompts   []string
	IDs       int
	Tools     string
}

func look(r *Request) seen {
	s := seen{Model: string(r.Model), Stream: r.Stream, MaxTokens: r.MaxTokens, Choices: r.Choices, Tools: string(r.Tools)}
	for _, m := range r.Messages {
		text := "-"
		if m.Content != nil {
			text = "=" + string(m.Content)
		}
		s.Messages = append(s.Messages, m.Role+text)
	}
	for _, p := range r.Prompts {
		s.IDs += p.IDs
		if p.Text != nil {
			s.Prompts = append(s.Prompts, string(p.Text))
		}
	}
	return s
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		api  API
		body string
		want seen
	}{
		{
			name: "chat",
			api:  Chat,
			body: `{"model":"m","stream":true,"max_tokens":7,"n":2,"messages":[{"role":"system","content":"be"},{"content":"a\"\u00e9\ud83d\ude00\n","role":"user"}]}`,
			want: seen{Model: "m", Stream: true, MaxTokens: 7, Choices: 2, Messages: []string{"system=be", "user=a\"é😀\n"}},
		},
		{
			name: "a single text part is plain text, several are not",
			api:  Chat,
			body: `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url"}]},{"role":"assistant","content":null,"tool_calls":[]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"user=x", "user-", "assistant-"}},
		},
		{
			name: "the last of equal keys counts, escaped keys too",
			api:  Chat,
			body: `{"model":"a","messages":[{"role":"user","content":"1"}],"\u006dodel":"b","messages":[]}`,
			want: seen{Model: "b", MaxTokens: -1, Choices: 1},
		},
		{
			name: "completions of texts",
			api:  Completions,
			body: ` { "model" : "m" , "prompt" : [ "a" , "b\tc" ] } `,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Prompts: []string{"a", "b\tc"}},
		},
		{
			name: "completions of ids",
			api:  Completions,
			body: `{"model":"m","prompt":[[1,2,3],[4]]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, IDs: 4},
		},
		{
			name: "embeddings",
			api:  Embeddings,
			body: `{"model":"m","input":"hello"}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Prompts: []string{"hello"}},
		},
		{
			name: "responses with instructions behind the input",
			api:  Responses,
			body: `{"model":"m","input":"hello","instructions":"be kind","max_output_tokens":5}`,
			want: seen{Model: "m", MaxTokens: 5, Choices: 1, Messages: []string{"system=be kind", "user=hello"}},
		},
		{
			name: "responses with items",
			api:  Responses,
			body: `{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"user=hi"}},
		},
		{
			name: "fields of wrong types are the engine's to refuse",
			api:  Chat,
			body: `{"model":3,"max_tokens":"x","n":-4,"stream":"true","messages":"no","tools":{}}`,
			want: seen{MaxTokens: -1, Choices: 1},
		},
		{
			name: "tools",
			api:  Chat,
			body: `{"model":"m","tools":[{"type":"function"}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Tools: `[{"type":"function"}]`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			if err := r.Parse(tt.api, []byte(tt.body)); err != nil {
				t.Fatalf("Parse() = %v", err)
			}
			if d := cmp.Diff(tt.want, look(&r)); d != "" {
				t.Errorf("Parse() (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	for _, body := range []string{
		"", " ", "null", "[]", `"x"`, "{", `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":01}`, `{"a":+1}`, `{"a":1.}`, `{"a":1e}`,
		`{"a":"` + "\n" + `"}`, `{"a":"\x"}`, `{"a":"\u12g4"}`, `{"a":"\u12`, `{"a":"b`, `{"a":tru}`, `{"a":1} x`, `{a:1}`, `{"a":` + deep + `}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"x}]}]}`,
	} {
		var r Request
		if err := r.Parse(Chat, []byte(body)); err == nil || err.Status != 400 {
			t.Errorf("Parse(%q) = %v, want a 400", body, err)
		}
	}
}

// naive reads the same by encoding/json.
func naive(b []byte) (model string, roles []string, texts []string) {
	var v map[string]json.RawMessage
	if json.Unmarshal(b, &v) != nil {
		return
	}
	_ = json.Unmarshal(v["model"], &model)
	var ms []json.RawMessage
	_ = json.Unmarshal(v["messages"], &ms)
	for _, raw := range ms {
		var m map[string]json.RawMessage
		if json.Unmarshal(raw, &m) != nil || m == nil {
			continue
		}
		var role, content string
		_ = json.Unmarshal(m["role"], &role)
		_ = json.Unmarshal(m["content"], &content)
		roles, texts = append(roles, role), append(texts, content)
	}
	return
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","messages":[{"role":"user","content":"a\u00e9\ud83d\ude00"}]}`,
		`{"model":"m","messages":[{"role":"user","content":"\ud83d x"},{"content":"","role":"tool"}],"n":2.5e3}`,
		`{"model":"m","prompt":["a",[1,2],3,{"x":null}]}`, `{"a":[[[[true,false,null]]]]}`, "{", `{"a":"\`,
	} {
		f.Add([]byte(s))
	}
	var reused Request
	f.Fuzz(func(t *testing.T, body []byte) {
		for api := Other; api <= Responses; api++ {
			err := reused.Parse(api, body)
			if err == nil && !json.Valid(body) {
				t.Fatalf("Parse(%q) accepts what is not JSON", body)
			}
			if err != nil && json.Valid(body) && body[firstByte(body)] == '{' && !tooDeep(body) {
				t.Fatalf("Parse(%q) = %v, but it is a valid object", body, err)
			}
			_ = reused.Estimate()
		}
		if reused.Parse(Chat, body) != nil || strings.Contains(string(body), `\u`) && !escapesInValuesOnly(body) {
			return
		}
		model, roles, texts := naive(body)
		if !validUTF8(body) {
			return // encoding/json replaces what is not UTF-8, the engine gets it as sent
		}
		if string(reused.Model) != model {
			t.Errorf("Parse(%q).Model = %q, want %q", body, reused.Model, model)
		}
		if len(reused.Messages) != len(roles) {
			t.Fatalf("Parse(%q) has %d messages, want %d", body, len(reused.Messages), len(roles))
		}
		for i, m := range reused.Messages {
			if m.Role != roles[i] {
				t.Errorf("Parse(%q).Messages[%d].Role = %q, want %q", body, i, m.Role, roles[i])
			}
			if !strings.Contains(string(m.Raw), "[") && string(m.Content) != texts[i] {
				t.Errorf("Parse(%q).Messages[%d].Content = %q, want %q", body, i, m.Content, texts[i])
			}
		}
	})
}

func firstByte(b []byte) int {
	return len(b) - len(strings.TrimLeft(string(b), " \t\r\n"))
}

func validUTF8(b []byte) bool { return strings.ToValidUTF8(string(b), "") == string(b) }

func tooDeep(b []byte) bool {
	return strings.Count(string(b), "[")+strings.Count(string(b), "{") >= maxDepth
}

// escapesInValuesOnly tells whether no key inside a message is spelt with
// escapes, which Parse does not look through.
func escapesInValuesOnly(b []byte) bool {
	var v map[string]json.RawMessage
	if json.Unmarshal(b, &v) != nil {
		return false
	}
	return !strings.Contains(string(v["messages"]), `\u`)
}

func TestUnescapeLikeEncodingJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pieces := []string{`a`, `é`, `\n`, `\"`, `\\`, `\/`, `\u0041`, `\ud83d`, `\ude00`, `\ud83d\ude00`, `\uD83D\uDE00`, `\t`, `\b`, `\f`, `\r`, `日`}
	for range 2000 {
		var b strings.Builder
		for range r.IntN(8) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		var want string
		if err := json.Unmarshal([]byte(`"`+b.String()+`"`), &want); err != nil {
			t.Fatal(err)
		}
		if got := string(unescape(nil, []byte(b.String()))); got != want {
			t.Errorf("unescape(%s) = %q, want %q", b.String(), got, want)
		}
	}
}

func TestErrorJSON(t *testing.T) {
	got := string(ModelNotFound(`a"b`).JSON())
	want := `{"error":{"message":"the model \"a\\\"b\" does not exist here: GET /v1/models lists those that do","type":"invalid_request_error","param":"model","code":"model_not_found"}}`
	if got != want {
		t.Errorf("JSON() = %s, want %s", got, want)
	}
	if got := string(NotJSON(3).JSON()); !strings.Contains(got, `"param":null`) {
		t.Errorf("JSON() = %s, want a null param", got)
	}
}

func TestAPIOf(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		want         API
	}{
		{"POST", "/v1/chat/completions", Chat},
		{"POST", "/chat/completions?x=1", Chat},
		{"POST", "/v1/completions", Completions},
		{"POST", "/v1/embeddings", Embeddings},
		{"POST", "/v1/responses", Responses},
		{"GET", "/v1/responses/abc", Other},
		{"GET", "/v1/chat/completions", Other},
		{"POST", "/v1x/chat/completions", Other},
	} {
		if got := APIOf(tt.method, tt.path); got != tt.want {
			t.Errorf("APIOf(%s %s) = %v, want %v", tt.method, tt.path, got, tt.want)
		}
	}
}

func chatBody(n int) []byte {
	return []byte(`{"model":"smollm2","stream":true,"max_tokens":64,"messages":[{"role":"system","content":"` +
		strings.Repeat("words and more ", n/30) + `"},{"role":"user","content":"` + strings.Repeat("who are you ", n/24) + `"}]}`)
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{2 << 10, 64 << 10, 400 << 10} {
		body := chatBody(n)
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			var r Request
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Parse(Chat, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
