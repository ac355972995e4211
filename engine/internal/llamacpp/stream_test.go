package llamacpp

import (
	"encoding/json"
	"testing"
)

func TestStreamable(t *testing.T) {
	tests := []struct {
		body string
		want bool
	}{
		{`{"messages":[]}`, true},
		{`{"prompt":"a","n":1,"logprobs":false,"tools":null,"stream":false}`, true},
		{`{"prompt":["a"]}`, false},
		{`{"prompt":[1,2]}`, false},
		{`{"n":2}`, false},
		{`{"stop":["a"]}`, false},
		{`{"logprobs":0}`, false},
		{`{"logprobs":true}`, false},
		{`{"tools":[]}`, false},
		{`{"stream_options":{}}`, false},
	}
	for _, tt := range tests {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(tt.body), &fields); err != nil {
			t.Fatal(err)
		}
		if got := streamable(fields); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.body, got, tt.want)
		}
	}
}

func TestAsStream(t *testing.T) {
	got := string(appendStream([]byte("{\"stream\":false,\"a\":{}} \r\n")))
	if want := `{"stream":false,"a":{},"stream":true,"stream_options":{"include_usage":true}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
