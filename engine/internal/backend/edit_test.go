package backend

import (
	"bytes"
	"encoding/json"
	"testing"
)

func fieldsOf(t testing.TB, body string) map[string]json.RawMessage {
	t.Helper()
	var f map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAskUsage(t *testing.T) {
	tests := []struct {
		body, want string
		asked      bool
	}{
		{"{\"stream\":true} \n", `{"stream":true,"stream_options":{"include_usage":true}}`, true},
		{`{"stream_options":{"include_usage":true},"a":1}`, `{"stream_options":{"include_usage":true},"a":1}`, false},
		{`{"stream_options": {"include_usage":false,"x":[1]} , "a":1}`, `{"stream_options": {"include_usage":true,"x":[1]} , "a":1}`, true},
		{`{"stream_options":null,"a":1}`, `{"stream_options":{"include_usage":true},"a":1}`, true},
		{`{"stream_options":7}`, `{"stream_options":7}`, false},
	}
	for _, tt := range tests {
		got, asked := AskUsage(Request{Body: []byte(tt.body), Fields: fieldsOf(t, tt.body), Stream: true})
		if string(got) != tt.want || asked != tt.asked {
			t.Errorf("%s: %s %v, want %s %v", tt.body, got, asked, tt.want, tt.asked)
		}
	}
}

func TestSet(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{"model":"a","b":{"model":"a"}}`, `{"model":"z","b":{"model":"a"}}`},
		{` { "b":[1,"model"], "model" : "a" } `, ` { "b":[1,"model"], "model" : "z" } `},
		{`{"model":"a","model":"b"}`, `{"model":"z","model":"z"}`},
		{`{"b":1}`, `{"b":1}`},
		{`[]`, `[]`},
	}
	for _, tt := range tests {
		if got := Set([]byte(tt.body), "model", []byte(`"z"`)); string(got) != tt.want {
			t.Errorf("%s: %s, want %s", tt.body, got, tt.want)
		}
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte(`{"a":{"a":1},"a":[{"a":2}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var before map[string]json.RawMessage
		if json.Unmarshal(body, &before) != nil || before == nil {
			return
		}
		got := Set(bytes.Clone(body), "a", []byte("7"))
		after := fieldsOf(t, string(got))
		if _, has := before["a"]; has && string(after["a"]) != "7" || len(after) != len(before) {
			t.Errorf("%s became %s", body, got)
		}
	})
}

const (
	token   = `data: {"choices":[{"delta":{"content":"\"choices\":[],\"usage\":{}"}}],"usage":null}` + "\n\n"
	last    = `data: {"choices":[{"finish_reason":"stop","delta":{}}],"usage":{"prompt_tokens":1}}` + "\n\n"
	account = `data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}` + "\n\n"
	done    = "data: [DONE]\n\n"
)

func TestFilterDropsTheAccount(t *testing.T) {
	const stream = ": hello\n\n" + token + last + account + done + "tail"
	const want = ": hello\n\n" + token + last + done + "tail"
	for cut := range len(stream) {
		var f Filter
		got := string(f.Pass([]byte(stream[:cut])))
		got += string(f.Pass([]byte(stream[cut:])))
		if got += string(f.Rest()); got != want {
			t.Fatalf("cut at %d: %s, want %s", cut, got, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte(token+account+done), uint(30))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint) {
		var one, two Filter
		want := append(bytes.Clone(one.Pass(stream)), one.Rest()...)
		at := int(cut % uint(len(stream)+1))
		got := bytes.Clone(two.Pass(stream[:at]))
		got = append(append(got, two.Pass(stream[at:])...), two.Rest()...)
		if !bytes.Equal(got, want) {
			t.Errorf("cut at %d: %q, whole: %q", at, got, want)
		}
	})
}

func TestRename(t *testing.T) {
	names := map[string]string{"a": "", "b": "z"}
	tests := []struct{ body, want string }{
		{`{"a":1,"b":[{"a":1}],"c":"\u0061", "a" : {"b":2} }`, `{"z":[{"a":1}],"c":"\u0061"}`},
		{`{"\u0061":1}`, `{}`},
		{`[1]`, `[1]`},
	}
	for _, tt := range tests {
		if got := string(Rename([]byte(tt.body), names)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.body, got, tt.want)
		}
	}
}
