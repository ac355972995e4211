package resume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func way(form Form) Way {
	return Way{Form: form, Reasons: true, Mixed: true, Prefilled: func(map[string]json.RawMessage) bool { return true }}
}

func TestFollow(t *testing.T) {
	for name, tt := range map[string]struct {
		form       Form
		body, part string
		counts     Counts
		want       string
		wantErr    error
	}{
		"nothing was delivered": {Chat, `{"messages":[{"role":"user"}],"n":2,"seed":3,"max_tokens":9}`, `{}`, Counts{5, 0}, `{"max_tokens":9,"messages":[{"role":"user"}],"n":1,"seed":3,"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"a text":                {Chat, `{"messages":[{"role":"user"}],"min_tokens":4,"max_completion_tokens":9,"ignore_eos":true}`, `{"content":"ä"}`, Counts{5, 3}, `{"ignore_eos":true,"max_completion_tokens":6,"messages":[{"role":"user"},{"content":"ä","role":"assistant"}],"min_tokens":1,"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"a reasoning":           {Chat, `{"messages":[{"role":"user"}]}`, `{"reasoning":"r"}`, Counts{5, 3}, `{"messages":[{"role":"user"},{"content":"","reasoning_content":"r","role":"assistant"}],"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"more was prefilled":    {Chat, `{"messages":[{"role":"assistant","content":"a"}]}`, `{"content":"b"}`, Counts{5, 3}, `{"messages":[{"content":"ab","role":"assistant"}],"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"no limit":              {Chat, `{"messages":[{}],"max_tokens":-1}`, `{}`, Counts{5, 0}, `{"max_tokens":-1,"messages":[{}],"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"the limit was reached": {Chat, `{"messages":[{}],"max_tokens":3}`, `{"content":"a"}`, Counts{5, 3}, ``, nil},
		"a prompt":              {Text, `{"prompt":"a<","n_predict":9}`, `{"content":"b"}`, Counts{5, 3}, `{"n_predict":6,"prompt":"a<b","stream":true,"stream_options":{"include_usage":true}}`, nil},
		"a prompt of tokens":    {Text, `{"prompt":[1,2]}`, `{"content":"b"}`, Counts{5, 3}, `{"prompt":[1,2,"b"],"stream":true,"stream_options":{"include_usage":true}}`, nil},
		"several prompts":       {Text, `{"prompt":["a","b"]}`, `{"content":"b"}`, Counts{5, 3}, ``, ErrPrompt},
		"thoughts and a text":   {Message, `{"messages":[{"role":"user"}]}`, `{"reasoning":"r","content":"a"}`, Counts{5, 3}, `{"messages":[{"role":"user"},{"content":[{"signature":"","thinking":"r","type":"thinking"},{"text":"a","type":"text"}],"role":"assistant"}],"stream":true}`, nil},
		"a prefilled block":     {Message, `{"messages":[{"role":"assistant","content":[{"type":"text","text":"a"}]}]}`, `{"content":"b"}`, Counts{5, 3}, `{"messages":[{"content":[{"text":"ab","type":"text"}],"role":"assistant"}],"stream":true}`, nil},
		"behind a call":         {Chat, `{"messages":[{"role":"assistant","tool_calls":[{}]}]}`, `{"content":"b"}`, Counts{5, 3}, ``, ErrPrompt},
	} {
		var p Part
		if err := json.Unmarshal([]byte(tt.part), &p); err != nil {
			t.Fatal(err)
		}
		r, err := Read(way(tt.form), []byte(tt.body))
		if err != nil {
			t.Fatal(name, err)
		}
		if got, err := r.Follow(p, tt.counts); string(got) != tt.want || !errors.Is(err, tt.wantErr) {
			t.Errorf("%s: %s %v, want %s %v", name, got, err, tt.want, tt.wantErr)
		}
	}
}

func TestGuided(t *testing.T) {
	for body, want := range map[string]bool{
		`{"response_format":{"type":"text"},"logprobs":null,"tool_choice":"auto","n_probs":0,"logprobs":false}`: false,
		`{"tool_choice": {"type": "none"}, "response_format": { "type": "text" }}`:                              false,
		`{"response_format":{"type":"json_object"}}`:                                                            true,
		`{"grammar":"root ::= x"}`:                   true,
		`{"logprobs":1}`:                             true,
		`{"tool_choice":"required"}`:                 true,
		`{"tool_choice":{"type":"tool","name":"f"}}`: true,
	} {
		var f fields
		if err := json.Unmarshal([]byte(body), &f); err != nil {
			t.Fatal(err)
		}
		if got := Guided(f); got != want {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
}

// TestMemory has a long stream be kept as its text alone.
func TestMemory(t *testing.T) {
	s := New(Chat, 1)
	event := []byte(`data: {"id":"x","choices":[{"index":0,"delta":{"content":"ab"},"finish_reason":null}]}` + "\n\n")
	for range 10_000 {
		s.Take(event)
		if cap(s.raw) > 4*folded {
			t.Fatalf("%d bytes of events are kept", cap(s.raw))
		}
	}
	if p, open := s.Next(); !open || p.Content != strings.Repeat("ab", 10_000) || s.Why() != nil {
		t.Errorf("%d bytes, %v, %v", len(p.Content), open, s.Why())
	}
}

// FuzzStream has whatever a backend may send be taken, and be spliced: what is delivered are
// whole events, of which each has the first one's id, and the text is that of both.
func FuzzStream(f *testing.F) {
	f.Add(0, []byte("data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n"), []byte("data: {\"id\":\"b\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"b\"},\"finish_reason\":\"stop\"}],\"usage\":{\"completion_tokens\":3}}\r\n\r\ndata: [DONE]\n\n"))
	f.Add(1, []byte("data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\n"), []byte("data: {\"choices\":[{\"index\":7,\"text\":\"b\"}]}\n\n"))
	f.Add(2, []byte("event: message_start\ndata: {\"type\":\"message_start\"}\n\ndata: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\"}}\n\n"), []byte("data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\"}}\n\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"thinking\":\"x\"}}\n\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":1}}\n\n"))
	f.Fuzz(func(t *testing.T, form int, first, rest []byte) {
		s := New(Form(uint(form)%3), 2)
		s.Take(first[:Whole(first)])
		before, open := s.Next()
		r, err := Read(way(s.form), []byte(`{"messages":[{}],"prompt":"a","stream_options":{"include_usage":true}}`))
		if err != nil || !open {
			return
		}
		s.Resume(r)
		out := s.Splice(before.Index, Counts{1, 2}, rest[:Whole(rest)])
		out = append(out, s.Limit(before.Index, Counts{1, 2})...)
		out = append(out, s.End()...)
		if len(out) > 0 && Whole(out) != len(out) {
			t.Errorf("half an event: %q", out)
		}
		for data := range dataOf(out) {
			if string(data) == "[DONE]" {
				continue
			}
			var e fields
			if err := json.Unmarshal(data, &e); err != nil {
				t.Errorf("%v: %s", err, data)
			}
			if id := s.head["id"]; id != nil && !bytes.Equal(e["id"], id) && s.form != Message {
				t.Errorf("id %s, want %s", e["id"], id)
			}
		}
		if after := s.choices[before.Index]; s.Why() == nil && !strings.HasPrefix(after.content.String(), before.Content) {
			t.Errorf("%q became %q", before.Content, after.content.String())
		}
		for i, c := range s.choices {
			if _, err := r.With(Part{i, c.reasoning.String(), c.content.String()}); err != nil {
				t.Error(fmt.Errorf("choice %d: %w", i, err))
			}
		}
	})
}
