package e2e

import (
	"fmt"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// messagesUsage is the account in Anthropic's API, whose input leaves out what was
// cached.
type messagesUsage struct {
	Type  string
	Usage struct {
		Input  int `json:"input_tokens"`
		Cached int `json:"cache_read_input_tokens"`
		Output int `json:"output_tokens"`
	}
}

// anthropicBodies are requests of all sorts of contents.
func anthropicBodies() []map[string]any {
	text := func(s string) map[string]any { return map[string]any{"type": "text", "text": s} }
	use := map[string]any{"type": "tool_use", "id": "t1", "name": "weather", "input": map[string]any{"city": "Wien", "days": 3}}
	result := map[string]any{"type": "tool_result", "tool_use_id": "t1", "content": []any{text("21 °C, "), text("clear")}}
	tool := map[string]any{"name": "weather", "description": "Weather of a city.", "input_schema": map[string]any{"type": "object"}}
	one := func(content any) []any {
		return []any{say("user", "Hi"), say("assistant", "Hello."), map[string]any{"role": "user", "content": content}}
	}
	return []map[string]any{
		{"messages": one("What is the weather?")},
		{"system": "Be kind.", "messages": one([]any{text("Größe, 漢字"), text("and 🙂")})},
		{"system": []any{text("Be "), text("terse.")}, "messages": one([]any{text("def f(x):\n\treturn x")})},
		{"messages": []any{say("user", "Weather?"), map[string]any{"role": "assistant", "content": []any{text("One moment."), use}}, map[string]any{"role": "user", "content": []any{result, text("and?")}}}, "tools": []any{tool}},
		{"messages": one(strings.Repeat("A longer text, again and again. ", 40)), "stop_sequences": []string{"x"}, "metadata": map[string]any{"user_id": "u"}},
		{"messages": []any{say("user", "Go on:"), say("assistant", "The weather is")}},
	}
}

// TestMessages asks Anthropic's API through the mesh: usage, extproc's count and
// the engine's own count are the same, streamed or not.
func TestMessages(t *testing.T) {
	m := shared(t)
	log := m.AccessLog()
	bodies := anthropicBodies()
	want := make([]int, len(bodies))
	for i, body := range bodies {
		body["model"], body["max_tokens"] = model, 4
		counted := rig.Decode[struct {
			Input int `json:"input_tokens"`
		}](t, rig.MustPost(t, m.URL(t, "/v1/messages/count_tokens"), body).Body).Input
		a := rig.MustPost(t, m.URL(t, "/v1/messages"), body, "x-session-id", countSession(i))
		got := rig.Decode[messagesUsage](t, a.Body)
		want[i] = got.Usage.Input + got.Usage.Cached
		if got.Type != "message" || want[i] != counted || counted == 0 {
			t.Errorf("request %d: %s, counted as %d", i, a.Body, counted)
		}
		header := fmt.Sprintf("prompt=%d,cached=%d,completion=%d", want[i], got.Usage.Cached, got.Usage.Output)
		if h := a.Header.Get("x-millrace-usage"); !strings.HasPrefix(h, header) {
			t.Errorf("request %d: x-millrace-usage: %q, want %q in it", i, h, header)
		}
		body["stream"] = true
		if s := string(rig.MustPost(t, m.URL(t, "/messages"), body).Body); !strings.Contains(s, "event: message_stop") {
			t.Errorf("request %d: a stream without its end: %.300s", i, s)
		}
	}
	got := loggedTokens(t, log, len(bodies))
	for i := range want {
		if n := got[countSession(i)]; n != want[i] {
			t.Errorf("request %d: extproc counts %d, the engine %d", i, n, want[i])
		}
	}
}

// TestMessagesErrors shows that errors take Anthropic's form, whoever answers.
func TestMessagesErrors(t *testing.T) {
	m := shared(t)
	for name, tt := range map[string]struct {
		body   string
		status int
		kind   string
	}{
		"not JSON":         {`{`, 400, "invalid_request_error"},
		"an unknown model": {`{"model":"nobody","messages":[]}`, 404, "not_found_error"},
		"no messages":      {`{"model":"` + model + `"}`, 400, "invalid_request_error"},
		"too large":        {`{"model":"` + model + `","messages":"` + strings.Repeat("x", 17<<20) + `"}`, 413, "request_too_large"},
	} {
		for _, path := range []string{"/v1/messages", "/messages"} {
			a, err := rig.Send(t.Context(), m.URL(t, path), strings.NewReader(tt.body), "content-type", "application/json")
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := rig.Decode[struct {
				Type  string
				Error struct{ Type, Message string }
			}](t, a.Body)
			if a.Status != tt.status || got.Type != "error" || got.Error.Type != tt.kind || got.Error.Message == "" {
				t.Errorf("%s: status %d: %.300s; want %d and %s", name, a.Status, a.Body, tt.status, tt.kind)
			}
		}
	}
}
