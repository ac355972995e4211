package openai

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/apis"
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
	MinTokens int
	Hints     string
	Previous  string
	Talk      string
	User      string
	Media     []Media
}

func seenOf(r *Request) seen {
	s := seen{Model: string(r.Model), Stream: r.Stream, MaxTokens: r.MaxTokens, Choices: r.Choices, Tools: string(r.Tools)}
	s.MinTokens, s.Previous, s.User, s.Media = r.MinTokens, string(r.Previous), string(r.User), append(s.Media, r.Media...)
	s.Talk = string(r.Conversation)
	if r.IgnoreEOS {
		s.Hints = "eos "
	}
	if r.Stops {
		s.Hints += "stop"
	}
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
		api  apis.API
		body string
		want seen
	}{
		{
			name: "what an engine has beside the API's limit may be what counts there", api: apis.Chat,
			body: `{"model":"m","max_tokens":1,"n_predict":400,"n":1,"n_cmpl":3}`,
			want: seen{Model: "m", MaxTokens: 400, Choices: 3},
		},
		{
			name: "it is no limit alone", api: apis.Chat,
			body: `{"model":"m","n_predict":4}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1},
		},
		{
			name: "without end, as an engine has it", api: apis.Completions,
			body: `{"model":"m","max_tokens":1,"n_predict":-1}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1},
		},
		{
			name: "the limit of another operation is none", api: apis.Responses,
			body: `{"model":"m","max_tokens":1}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1},
		},
		{
			name: "numbers as the most lenient engine has them", api: apis.Chat,
			body: `{"model":"m","max_tokens":4e2,"n":"\u0031\u0032","min_tokens":"7.0"}`,
			want: seen{Model: "m", MaxTokens: 400, Choices: 12, MinTokens: 7},
		},
		{
			name: "of two fields of one name the last counts", api: apis.Chat,
			body: `{"model":"m","max_tokens":400,"max_tokens":4,"Max_Tokens":1}`,
			want: seen{Model: "m", MaxTokens: 4, Choices: 1},
		},
		{
			name: "chat",
			api:  apis.Chat,
			body: `{"model":"m","stream":true,"max_tokens":7,"n":2,"messages":[{"role":"system","content":"be"},{"content":"a\"\u00e9\ud83d\ude00\n","role":"user"}]}`,
			want: seen{Model: "m", Stream: true, MaxTokens: 7, Choices: 2, Messages: []string{"system=be", "user=a\"é😀\n"}},
		},
		{
			name: "a single text part is plain text, several are not",
			api:  apis.Chat,
			body: `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"user","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]},{"role":"user","content":[{"type":"text","text":"x"},{"type":"new"}]},{"role":"assistant","content":null,"tool_calls":[]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"user=x", "user-", "user-", "assistant-"}},
		},
		{
			name: "text beside media is read, the media apart",
			api:  apis.Chat,
			body: `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"http://a/b.png","detail":"low"}},{"text":"y","type":"text"},{"type":"input_audio","input_audio":{"data":"AAAA","format":"mp3"}}]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"user=x\ny"}, Media: []Media{{Kind: Image, Low: true, Bytes: 16}, {Kind: Audio, Seconds: 1, Bytes: 6}}},
		},
		{
			name: "of the limits the newer one counts, and of choices the larger",
			api:  apis.Completions,
			body: `{"model":"m","max_completion_tokens":3,"max_tokens":9,"n":2,"best_of":5,"min_tokens":2,"ignore_eos":true,"stop":["x"]}`,
			want: seen{Model: "m", MaxTokens: 9, Choices: 5, MinTokens: 2, Hints: "eos stop"},
		},
		{
			name: "no stops",
			api:  apis.Chat,
			body: `{"model":"m","stop":[ ],"ignore_eos":false}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1},
		},
		{
			name: "keys of limits are escaped, too",
			api:  apis.Chat,
			body: `{"model":"m","m\u0061x_tokens":4,"\u0073top":"x"}`,
			want: seen{Model: "m", MaxTokens: 4, Choices: 1, Hints: "stop"},
		},
		{
			name: "a response that goes on",
			api:  apis.Responses,
			body: `{"model":"m","previous_response_id":"resp_1","input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"data:,x"}]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Previous: "resp_1", Messages: []string{"-"}, Media: []Media{{Kind: Image, Bytes: 9}}},
		},
		{
			name: "anthropic",
			api:  apis.Messages,
			body: `{"model":"m","max_tokens":5,"system":[{"type":"text","text":"be"},{"type":"text","text":" kind","cache_control":{}}],"stop_sequences":["x"],"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"text","text":"b"},{"type":"new"}]},{"role":"user","content":[{"type":"document","source":{"data":"x"}}]},{"role":"assistant"},{"role":"user","content":[]},{"role":"user"},{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"https://x"}}]},{"type":"text","text":"c"}]}]}`,
			want: seen{Model: "m", MaxTokens: 5, Choices: 1, Hints: "stop", Messages: []string{"system=be kind", "user=a", "assistant=b", "user-", "user-"}, Media: []Media{{Kind: Image, Bytes: 11}}},
		},
		{
			name: "anthropic with a system text, a line for the bill in it",
			api:  apis.Messages,
			body: `{"model":"m","system":"x-anthropic-billing-header: a=b; cch=a5145;You are","messages":[]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"system=x-anthropic-billing-header: a=b; cch=fffff;You are"}},
		},
		{
			name: "users",
			api:  apis.Messages,
			body: `{"model":"m","metadata":{"x":[1],"user_id":"u\u0031"}}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, User: "u1"},
		},
		{
			name: "users of OpenAI's API",
			api:  apis.Chat,
			body: `{"model":"m","user":"u","metadata":{"user_id":"v"}}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, User: "u"},
		},
		{
			name: "anthropic's system is nothing elsewhere",
			api:  apis.Chat,
			body: `{"model":"m","system":"be","instructions":"x"}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1},
		},
		{
			name: "the last of equal keys counts, escaped keys too",
			api:  apis.Chat,
			body: `{"model":"a","messages":[{"role":"user","content":"1"}],"\u006dodel":"b","messages":[]}`,
			want: seen{Model: "b", MaxTokens: -1, Choices: 1},
		},
		{
			name: "completions of texts",
			api:  apis.Completions,
			body: ` { "model" : "m" , "prompt" : [ "a" , "b\tc" ] } `,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Prompts: []string{"a", "b\tc"}},
		},
		{
			name: "completions of ids",
			api:  apis.Completions,
			body: `{"model":"m","prompt":[[1,2,3],[4]]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, IDs: 4},
		},
		{
			name: "embeddings",
			api:  apis.Embeddings,
			body: `{"model":"m","input":"hello"}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Prompts: []string{"hello"}},
		},
		{
			name: "responses with instructions behind the input",
			api:  apis.Responses,
			body: `{"model":"m","input":"hello","instructions":"be kind","max_output_tokens":5}`,
			want: seen{Model: "m", MaxTokens: 5, Choices: 1, Messages: []string{"system=be kind", "user=hello"}},
		},
		{
			name: "responses with items",
			api:  apis.Responses,
			body: `{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]}`,
			want: seen{Model: "m", MaxTokens: -1, Choices: 1, Messages: []string{"user=hi"}},
		},
		{
			name: "fields of wrong types are the engine's to refuse",
			api:  apis.Chat,
			body: `{"model":3,"max_tokens":"x","n":-4,"stream":"true","messages":"no","tools":{}}`,
			want: seen{MaxTokens: -1, Choices: 1},
		},
		{
			name: "tools",
			api:  apis.Chat,
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
			if d := cmp.Diff(tt.want, seenOf(&r)); d != "" {
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
		if err := r.Parse(apis.Chat, []byte(body)); err == nil || err.Status != 400 {
			t.Errorf("Parse(%q) = %v, want a 400", body, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","system":[{"type":"text","text":"a\u00e9"},{"type":"text","text":"b"}],"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{"data":"iVBORw0KGgo="}}]}]}]}`,
		`{"input":[{"output":[{"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"}]}],"system":"x-anthropic-billing-header: cch=12345;x"}`,
		`{"model":"m","messages":[{"role":"user","content":"a\u00e9\ud83d\ude00"}]}`,
		`{"model":"m","messages":[{"role":"user","content":"\ud83d x"},{"content":"","role":"tool"}],"n":2.5e3}`,
		`{"model":"m","prompt":["a",[1,2],3,{"x":null}]}`, `{"a":[[[[true,false,null]]]]}`, "{", `{"a":"\`,
	} {
		f.Add([]byte(s))
	}
	g := grammar{rand.New(rand.NewPCG(4, 5))}
	for range 20 {
		f.Add([]byte(g.body()))
	}
	var reused Request
	f.Fuzz(func(t *testing.T, body []byte) {
		for api := apis.Other; api < apis.Len; api++ {
			err := reused.Parse(api, body)
			if err == nil && !json.Valid(body) {
				t.Fatalf("Parse(%q) accepts what is not JSON", body)
			}
			if err != nil && json.Valid(body) && body[firstByte(body)] == '{' && !tooDeep(body) {
				t.Fatalf("Parse(%q) = %v, but it is a valid object", body, err)
			}
			_ = reused.Estimate()
		}
		checkParse(t, &reused, body)
	})
}

func firstByte(b []byte) int {
	return len(b) - len(strings.TrimLeft(string(b), " \t\r\n"))
}

func validUTF8(b []byte) bool { return strings.ToValidUTF8(string(b), "") == string(b) }

func tooDeep(b []byte) bool {
	return strings.Count(string(b), "[")+strings.Count(string(b), "{") >= maxDepth
}

// escapesInValuesOnly reports whether no key inside a message is spelt with
// escapes, which Parse does not look through: who renders the message does.
func escapesInValuesOnly(b []byte) bool {
	var v map[string]json.RawMessage
	if json.Unmarshal(b, &v) != nil {
		return false
	}
	for _, list := range []string{"messages", "input", "system"} {
		if strings.Contains(string(v[list]), `\u`) {
			return false
		}
	}
	return true
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

func TestAnthropicErrorJSON(t *testing.T) {
	for _, tt := range []struct {
		err  *Error
		want string
	}{
		{ModelNotFound("x"), "not_found_error"}, {NotJSON(0), "invalid_request_error"}, {TooLarge(1), "request_too_large"},
		{NotReady("x", ""), "overloaded_error"}, {&Error{Status: 429}, "rate_limit_error"}, {&Error{Status: 500}, "api_error"},
	} {
		tt.err.Dialect = apis.Anthropic
		var got struct {
			Type  string
			Error struct{ Type, Message string }
		}
		if err := json.Unmarshal(tt.err.JSON(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Type != "error" || got.Error.Type != tt.want || got.Error.Message != tt.err.Message {
			t.Errorf("JSON() = %s, want type %q", tt.err.JSON(), tt.want)
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
				if err := r.Parse(apis.Chat, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestEntriesAreBounded parses bodies of more messages, media and inputs than are kept: those
// beyond are counted, and take no memory.
func TestEntriesAreBounded(t *testing.T) {
	const n = 5 * MaxEntries
	list := func(one string) string { return "[" + strings.Repeat(one+",", n-1) + one + "]" }
	for name, tt := range map[string]struct {
		api  apis.API
		body string
	}{
		"messages": {apis.Chat, `{"messages":` + list(`{}`) + `}`},
		"media":    {apis.Chat, `{"messages":[{"role":"user","content":` + list(`{"type":"image_url","image_url":{"url":"x"}}`) + `}]}`},
		"texts":    {apis.Embeddings, `{"input":` + list(`""`) + `}`},
		"ids":      {apis.Embeddings, `{"input":` + list(`[1]`) + `}`},
		"items":    {apis.Responses, `{"input":` + list(`{}`) + `}`},
	} {
		var r Request
		if err := r.Parse(tt.api, []byte(tt.body)); err != nil {
			t.Fatalf("%s: %+v", name, err)
		}
		kept := len(r.Messages) + len(r.Media) + len(r.Prompts)
		if kept != MaxEntries || kept+r.Beyond < n {
			t.Errorf("%s: %d are kept, and %d beyond", name, kept, r.Beyond)
		}
		if got := r.Bytes(); got > MaxEntries*256 {
			t.Errorf("%s: %d bytes", name, got)
		}
	}
}
