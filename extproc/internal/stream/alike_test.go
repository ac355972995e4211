package stream

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/apis"
)

// keysOf returns the keys of a body's prefixes.
func keysOf(t *testing.T, api apis.API, body string) []session.Key {
	t.Helper()
	r := new(openai.Request)
	if err := r.Parse(api, []byte(body)); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	chain, _ := chainOf(session.Seed("m"), r, 1000, nil)
	var keys []session.Key
	for _, l := range chain {
		keys = append(keys, l.Key)
	}
	return keys
}

// TestPrefixesAreWhatIsRendered has bodies that are written differently and rendered alike
// have the same keys, and those that are rendered otherwise, or kept apart in caches, others.
func TestPrefixesAreWhatIsRendered(t *testing.T) {
	text := strings.Repeat("one two three four five six seven eight ", 60)
	chat := func(first string, more ...string) string {
		return `{"model":"m","messages":[` + first + `,{"role":"assistant","content":"ok"}]` + strings.Join(more, "") + `}`
	}
	user := `{"role":"user","content":"` + text + `é"}`
	call := func(arguments string) string {
		return `{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":` + arguments + `}}]}`
	}
	tool := func(fields string) string {
		return `,"tools":[{` + fields + `}]`
	}
	const f = `"function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"b":{},"a":{}}}}`
	tests := []struct {
		name string
		api  apis.API
		a, b string
		same bool
	}{
		{"the same", apis.Chat, chat(user), chat(user), true},
		{"order of fields", apis.Chat, chat(user), chat(`{"content":"` + text + `é","role":"user"}`), true},
		{"white space", apis.Chat, chat(user), chat(" {\n\t\"role\" : \"user\" , \"content\":  \"" + text + "é\" } "), true},
		{"escapes", apis.Chat, chat(user), chat(`{"role":"user","content":"` + text + `\u00e9"}`), true},
		{"escapes in names of fields", apis.Chat, chat(user), chat(`{"r\u006fle":"user","c\u006fntent":"` + text + `é"}`), true},
		{"escaped slashes", apis.Chat, chat(`{"role":"user","content":"a/b` + text + `"}`), chat(`{"role":"user","content":"a\/b` + text + `"}`), true},
		{"null fields", apis.Chat, chat(user), chat(`{"role":"user","name":null,"tool_calls":null,"content":"` + text + `é","refusal":null}`), true},
		{"lists with nothing", apis.Chat, chat(user), chat(`{"role":"user","tool_calls":[ ],"content":"` + text + `é"}`), true},
		{"a list of one text", apis.Chat, chat(user), chat(`{"role":"user","content":[{"type":"text","text":"` + text + `é"}]}`), true},
		{"a mark for the cache", apis.Chat, chat(user), chat(`{"role":"user","content":[{"type":"text","text":"` + text + `é","cache_control":{"type":"ephemeral"}}]}`), true},
		{"a mark for the cache of the message", apis.Messages, chat(user), chat(`{"role":"user","content":"` + text + `é","cache_control":{"type":"ephemeral"}}`), true},
		{"a mark that moved among parts", apis.Messages,
			chat(`{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},{"type":"text","text":"` + text + `"}]}`),
			chat(`{"role":"user","content":[{"type":"text","text":"a"},{"text":"` + text + `","type":"text","cache_control":{"type":"ephemeral","ttl":"1h"}}]}`), true},
		{"a system message of one text", apis.Messages, chat(user, `,"system":"`+text+`"`), chat(user, `,"system":[{"type":"text","text":"`+text+`","cache_control":{"type":"ephemeral"}}]`), true},
		{"arguments as text and as object", apis.Chat, chat(call(`"{\"a\": 1, \"b\":[ 2]}"`)), chat(call(`{"a":1,"b":[2]}`)), true},
		{"white space in arguments", apis.Chat, chat(call(`"{\"a\": 1}"`)), chat(call(`" {\"a\":1} "`)), true},
		{"order of fields of a call", apis.Chat, chat(call(`"{}"`)), chat(`{"tool_calls":[{"function":{"arguments":{},"name":"f"},"index":0,"type":"function","id":"c1"}],"role":"assistant"}`), true},
		{"order of fields of a tool", apis.Chat, chat(user, tool(`"type":"function",`+f)), chat(user, tool(` `+f+`, "type": "function", "cache_control":{"type":"ephemeral"}`)), true},
		{"tools before and behind the messages", apis.Chat, `{"tools":[{` + f + `}],"messages":[` + user + `]}`, `{"messages":[` + user + `],"tools":[{` + f + `}]}`, true},
		{"an answer sent back as it came", apis.Chat, chat(`{"role":"assistant","content":"` + text + `"}`), chat(`{"role":"assistant","content":"` + text + `","refusal":null,"annotations":[],"audio":null,"function_call":null,"tool_calls":null}`), true},
		{"items of Responses in their easy form", apis.Responses, `{"input":[{"role":"user","content":"` + text + `"}]}`, `{"input":[{"type":"message","id":"msg_1","status":"completed","role":"user","content":[{"type":"input_text","text":"` + text + `"}]}]}`, true},
		{"an input of one text", apis.Responses, `{"input":"` + text + `"}`, `{"input":[{"role":"user","content":"` + text + `"}]}`, true},
		{"a prompt and a list of one", apis.Completions, `{"prompt":"` + text + `"}`, `{"prompt":[ "` + text + `" ]}`, true},
		{"ids and a list of one list of ids", apis.Completions, `{"prompt":[1,2,3,4]}`, `{"prompt":[[ 1, 2,3 ,4]]}`, true},
		{"limits and sampling", apis.Chat, chat(user), chat(user, `,"max_tokens":3,"temperature":0.5,"stream":true`), true},
		{"fields that say nothing", apis.Chat, chat(user), chat(user, `,"cache_salt":null,"documents":null,"chat_template_kwargs":null`), true},
		{"order of the template's arguments", apis.Chat, chat(user, `,"chat_template_kwargs":{"a":1,"b":true}`), chat(user, `,"chat_template_kwargs":{"b":true, "a":1}`), true},

		{"another text", apis.Chat, chat(user), chat(`{"role":"user","content":"` + text + `è"}`), false},
		{"another role", apis.Chat, chat(user), chat(`{"role":"system","content":"` + text + `é"}`), false},
		{"a name", apis.Chat, chat(user), chat(`{"role":"user","name":"Ada","content":"` + text + `é"}`), false},
		{"two messages in place of one", apis.Chat, chat(`{"role":"user","content":"ab"}`), chat(`{"role":"user","content":"a"},{"role":"user","content":"b"}`), false},
		{"reasoning", apis.Chat, chat(call(`"{}"`)), chat(strings.Replace(call(`"{}"`), `"content":null`, `"content":null,"reasoning":"hm"`, 1)), false},
		{"another call", apis.Chat, chat(call(`"{\"a\":1}"`)), chat(call(`"{\"a\":2}"`)), false},
		{"the order of arguments, which is written", apis.Chat, chat(call(`"{\"a\":1,\"b\":2}"`)), chat(call(`"{\"b\":2,\"a\":1}"`)), false},
		{"the order of parameters, which is written", apis.Chat, chat(user, tool(f)), chat(user, tool(strings.Replace(f, `"b":{},"a":{}`, `"a":{},"b":{}`, 1))), false},
		{"another tool", apis.Chat, chat(user, tool(f)), chat(user, tool(strings.Replace(f, `"d"`, `"e"`, 1))), false},
		{"another picture", apis.Chat, chat(`{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:a"}}]}`), chat(`{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:b"}}]}`), false},
		{"a picture before its text", apis.Chat, chat(`{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:a"}}]}`), chat(`{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:a"}},{"type":"text","text":"a"}]}`), false},
		{"a salt", apis.Chat, chat(user), chat(user, `,"cache_salt":"a"`), false},
		{"another salt", apis.Chat, chat(user, `,"cache_salt":"a"`), chat(user, `,"cache_salt":"b"`), false},
		{"another extra key", apis.Completions, `{"prompt":"a","extra_key":"a"}`, `{"prompt":"a","extra_key":"b"}`, false},
		{"an adapter", apis.Completions, `{"prompt":"a","lora_path":"a"}`, `{"prompt":"a"}`, false},
		{"the template's arguments", apis.Chat, chat(user, `,"chat_template_kwargs":{"enable_thinking":true}`), chat(user, `,"chat_template_kwargs":{"enable_thinking":false}`), false},
		{"another template", apis.Chat, chat(user), chat(user, `,"chat_template":"{{ messages }}"`), false},
		{"documents", apis.Chat, chat(user), chat(user, `,"documents":[{"text":"d"}]`), false},
		{"how much it thinks", apis.Chat, chat(user, `,"reasoning_effort":"low"`), chat(user, `,"reasoning_effort":"high"`), false},
		{"without special tokens", apis.Completions, `{"prompt":"a"}`, `{"prompt":"a","add_special_tokens":false}`, false},
		{"other ids", apis.Completions, `{"prompt":[1,23]}`, `{"prompt":[12,3]}`, false},
		{"ids and the text of them", apis.Completions, `{"prompt":[1]}`, `{"prompt":"1"}`, false},
		{"the order of prompts", apis.Completions, `{"prompt":["a","b","c","a"]}`, `{"prompt":["c","a","a","b"]}`, true},
		{"the order of prompts of ids", apis.Completions, `{"prompt":[[1,2],[3],[1,4]]}`, `{"prompt":[[3],[1,4],[1,2]]}`, true},
		{"one of several prompts", apis.Completions, `{"prompt":["a","b","c"]}`, `{"prompt":["a","b","d"]}`, false},
		{"a prompt twice", apis.Completions, `{"prompt":["a","b","b"]}`, `{"prompt":["a","a","b"]}`, false},
		{"two prompts and one", apis.Completions, `{"prompt":["a","b"]}`, `{"prompt":"ab"}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := keysOf(t, tt.api, tt.a), keysOf(t, tt.api, tt.b)
			if len(a) == 0 || len(b) == 0 || slices.Equal(a, b) != tt.same || a[len(a)-1] == b[len(b)-1] != tt.same {
				t.Errorf("%x and %x; want the same: %v, of\n%.300s\n%.300s", a, b, tt.same, tt.a, tt.b)
			}
		})
	}
}

// TestPromptsShareTheirBeginning has prompts that continue another find it.
func TestPromptsShareTheirBeginning(t *testing.T) {
	ids := strings.TrimSuffix(strings.Repeat("17,4,", 2000), ",")
	text := strings.Repeat("a word and ", 900)
	for _, tt := range []struct {
		name        string
		api         apis.API
		first, then string
	}{
		{"ids that continue", apis.Completions, `{"prompt":[` + ids + `]}`, `{"prompt":[` + ids + `,5,6,7]}`},
		{"a text that continues", apis.Completions, `{"prompt":"` + text + `"}`, `{"prompt":["` + text + `more"]}`},
		{"a prompt, then with another", apis.Completions, `{"prompt":"` + text + `"}`, `{"prompt":["` + text + `","b"]}`},
		{"a prompt, then behind another", apis.Completions, `{"prompt":"` + text + `"}`, `{"prompt":["b","` + text + `","c"]}`},
		{"ids, then behind others", apis.Completions, `{"prompt":[` + ids + `]}`, `{"prompt":[[1],[` + ids + `]]}`},
		{"a turn more", apis.Responses, `{"input":"` + text + `"}`, `{"input":[{"role":"user","content":"` + text + `"},{"role":"assistant","content":[{"type":"output_text","text":"ok","annotations":[]}]},{"role":"user","content":"on"}]}`},
	} {
		a, b := keysOf(t, tt.api, tt.first), keysOf(t, tt.api, tt.then)
		common := 0
		for _, k := range a {
			if slices.Contains(b, k) {
				common++
			}
		}
		if common < len(a)-1 || common == 0 {
			t.Errorf("%s: %d of %d keys are found again", tt.name, common, len(a))
		}
	}
}

// TestRewritingChangesNoKey writes random conversations in random ways.
func TestRewritingChangesNoKey(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		api := []apis.API{apis.Chat, apis.Responses, apis.Messages}[r.IntN(3)]
		var messages []any
		for range 1 + r.IntN(4) {
			messages = append(messages, anyMessage(r))
		}
		field := "messages"
		if api == apis.Responses {
			field = "input"
		}
		one, other := write(r, messages, 0, false), write(r, messages, 0, true)
		a, b := keysOf(t, api, fmt.Sprintf(`{%q:%s}`, field, one)), keysOf(t, api, fmt.Sprintf(`{%q: %s}`, field, other))
		if !slices.Equal(a, b) {
			t.Fatalf("%v of\n%s\n%s", api, one, other)
		}
	}
}

func anyText(r *rand.Rand) string {
	return []string{"", "a", "é漢", "line\nline", `quote " \ /`, strings.Repeat("long ", 500), "\u2028😀"}[r.IntN(7)]
}

// anyMessage has fields in the order of their names.
func anyMessage(r *rand.Rand) map[string]any {
	m := map[string]any{"role": []string{"user", "assistant", "tool", "system"}[r.IntN(4)]}
	switch r.IntN(4) {
	case 0:
		m["content"] = []any{map[string]any{"type": "text", "text": "x" + anyText(r)}, map[string]any{"type": "text", "text": anyText(r)}}
	default:
		m["content"] = anyText(r)
	}
	if r.IntN(3) == 0 {
		m["name"] = "n" + anyText(r)
	}
	if r.IntN(3) == 0 {
		m["tool_calls"] = []any{map[string]any{"id": "c", "type": "function", "function": map[string]any{"name": "f", "arguments": `{"a":[1,2.5e3],"b":"` + "é" + `"}`}}}
	}
	return m
}

// write writes a value: the other way with white space, escapes, and the fields of objects
// in another order.
func write(r *rand.Rand, v any, depth int, other bool) string {
	blank := func() string {
		if other {
			return []string{"", " ", "\n\t"}[r.IntN(3)]
		}
		return ""
	}
	var all []string
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			all = append(all, blank()+write(r, k, depth, false)+blank()+":"+blank()+write(r, e, depth+1, other))
		}
		slices.Sort(all)
		if other {
			r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
		return "{" + strings.Join(all, ",") + blank() + "}"
	case []any:
		for _, e := range v {
			all = append(all, blank()+write(r, e, depth+1, other))
		}
		return "[" + strings.Join(all, ",") + "]"
	case string:
		if !other {
			b, _ := json.Marshal(v) // texts always marshal
			return string(b)
		}
		var b strings.Builder
		for _, c := range v {
			if c > 0xffff || c != '"' && c != '\\' && c >= ' ' && r.IntN(2) == 0 {
				b.WriteRune(c)
			} else {
				fmt.Fprintf(&b, `\u%04x`, c)
			}
		}
		return `"` + b.String() + `"`
	}
	panic(fmt.Sprintf("%T", v))
}
