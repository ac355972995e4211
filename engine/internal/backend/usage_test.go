package backend

import (
	"strings"
	"testing"
	"time"
)

func TestParseUsage(t *testing.T) {
	tests := []struct {
		name, text string
		want       Usage
		ok         bool
	}{
		{"chat", `{"usage":{"prompt_tokens":39,"completion_tokens":48,"prompt_tokens_details":{"cached_tokens":24}}}`, Usage{Prompt: 39, Cached: 24, Completion: 48}, true},
		{"with spaces, and null in the events before", "data: {\"usage\": {\"prompt_tokens\": 3}}\n\ndata: {\"usage\": null}\n\n", Usage{Prompt: 3}, true},
		{"details that are null", `{"usage":{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":null}}`, Usage{Prompt: 5, Completion: 1}, true},
		{"messages, some found and the rest kept", `{"usage":{"input_tokens":9,"output_tokens":1,"cache_creation_input_tokens":64,"cache_read_input_tokens":32}}`, Usage{Prompt: 105, Cached: 32, Completion: 1}, true},
		{"a text that looks like it", `{"content":"\"usage\":{\"prompt_tokens\":3}"}`, Usage{}, false},
		{"cut off", `{"usage":{"prompt_tokens":3`, Usage{}, false},
		{"nothing behind the key", `"usage"`, Usage{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := ParseUsage([]byte(tt.text)); got != tt.want || ok != tt.ok {
				t.Errorf("ParseUsage() = %+v, %v; want %+v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestTimesByTheClock(t *testing.T) {
	u := Usage{Prompt: 110, Cached: 10, Completion: 51}
	u.Time(time.Second, 5*time.Second)
	if got := u.Speed(); got != (Speed{Prefill: 100, Decode: 10}) {
		t.Errorf("%+v", got)
	}
	u.Time(time.Hour, time.Hour)
	if u.Prefill != time.Second {
		t.Error("the clock replaced what was known")
	}
}

func TestUsageOfMessages(t *testing.T) {
	const stream = "event: message_start\ndata: {\"message\":{\"usage\":{\"cache_read_input_tokens\":24,\"input_tokens\":7,\"output_tokens\":0}}}\n\n" +
		"event: message_delta\ndata: {\"usage\":{\"output_tokens\":3}}\n\n"
	u, _ := ParseUsage([]byte(stream))
	u.Begun([]byte(stream))
	if want := (Usage{Prompt: 31, Cached: 24, Completion: 3}); u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
	u = Usage{Prompt: 5}
	if u.Begun([]byte(stream)); u.Prompt != 5 {
		t.Errorf("%+v, want what was known", u)
	}
}

func TestResponseID(t *testing.T) {
	for first, want := range map[string]string{
		`{"created_at":1,"id":"resp_a1","output":[]}`:                             "resp_a1",
		"event: response.created\ndata: {\"response\":{\"id\":\"resp_Z-9\"}}\n\n": "resp_Z-9",
		`{"output":"\"id\":\"resp_no\""}`:                                         "",
		`{"id":"resp_a`:                                                           "",
		`{"id":"resp_a\n"}`:                                                       "",
		`{"id":"resp_` + strings.Repeat("a", 200) + `"}`:                          "",
		``: "",
	} {
		if got := ResponseID([]byte(first)); got != want {
			t.Errorf("ResponseID(%.60s) = %q, want %q", first, got, want)
		}
	}
}

func FuzzResponseID(f *testing.F) {
	f.Add([]byte(`{"id":"resp_a1"}`), []byte(`{"usage":{"input_tokens":7}}`))
	f.Fuzz(func(t *testing.T, first, start []byte) {
		if id := ResponseID(first); len(id) > longestID || strings.ContainsAny(id, "\r\n\x00") {
			t.Errorf("ResponseID(%q) = %q", first, id)
		}
		var u Usage
		u.Begun(start)
	})
}

func FuzzParseUsage(f *testing.F) {
	f.Add([]byte(`"usage":{"prompt_tokens":7}`), []byte("null"))
	f.Add([]byte(`"usage" :{`), []byte(`"usage": [`))
	f.Add([]byte("data: {\"error\":{\"code\":7}}\n\n"), []byte(`{"error":"text"}`))
	f.Fuzz(func(t *testing.T, b, body []byte) {
		if u, ok := ParseUsage(b); ok && u.Speed() != (Speed{}) {
			t.Errorf("%+v has times", u)
		}
		if e := FirstError(b); e != nil && (e.Status() < 400 || e.Status() > 599) {
			t.Errorf("status %d", e.Status())
		}
		if e := ParseError(400, body); e.Message == "" {
			t.Error("an error without a message")
		}
	})
}
