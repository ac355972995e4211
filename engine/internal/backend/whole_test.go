package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	// What a stream ends with: the account, and the end itself.
	streamUsage = "data: {\"choices\":[],\"created\":7,\"id\":\"x\",\"model\":\"m\",\"object\":\"chat.completion.chunk\",\"usage\":{\"total_tokens\":3},\"timings\":{\"cache_n\":1}}\n\n"
	streamDone  = "data: [DONE]\n\n"
	streamStop  = "data: {\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}]}\n\n"
)

func delta(s string) string {
	return `data: {"choices":[{"finish_reason":null,"index":0,"delta":` + s + "}]}\n\n"
}

func TestWhole(t *testing.T) {
	const rest = `"created":7,"id":"x","model":"m","object":"chat.completion","timings":{"cache_n":1},"usage":{"total_tokens":3}}`
	tests := []struct {
		name, stream, want string
	}{
		{
			name:   "a chat",
			stream: delta(`{"role":"assistant","content":null}`) + delta(`{"content":"a \"<b"}`) + ":\n\n" + delta(`{"content":">\n\ud83c"}`) + delta(`{"content":"\udf1fé"}`) + streamStop,
			want:   `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"a \"<b>\n\ud83c\udf1fé","refusal":null,"role":"assistant"}}],` + rest,
		},
		{
			name:   "a thought",
			stream: delta(`{"reasoning_content":"h"}`) + delta(`{"reasoning_content":"m"}`) + delta(`{"content":"ok"}`) + streamStop,
			want:   `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"ok","reasoning_content":"hm","refusal":null,"role":"assistant"}}],` + rest,
		},
		{
			name:   "what is null is not there",
			stream: `data: {"choices":[{"index":0,"text":null,"delta":{"content":"a","refusal":null}}],"usage":null,"error":null}` + "\n\n" + streamStop + delta(`{}`) + `data: {"choices":[],"usage":null}` + "\n\n",
			want:   `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"a","refusal":null,"role":"assistant"}}],` + rest,
		},
		{
			name:   "calls without an index",
			stream: delta(`{"tool_calls":[{"id":"c1","function":{"name":"f","arguments":"{"}}]}`) + delta(`{"tool_calls":[{"function":{"arguments":"}"}}]}`) + delta(`{"tool_calls":[{"id":"c2","function":{"name":"f","arguments":"{}"}}]}`) + streamStop,
			want: `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"","refusal":null,"role":"assistant","tool_calls":[` +
				`{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c2","type":"function","function":{"name":"f","arguments":"{}"}}]}}],` + rest,
		},
		{
			name:   "nothing said",
			stream: "data: null\n\n" + streamStop,
			want:   `{"choices":[{"finish_reason":"stop","index":0,"logprobs":null,"message":{"content":"","refusal":null,"role":"assistant"}}],` + rest,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for cut := range len(tt.stream) {
				var w Whole
				_, _ = w.Write([]byte(tt.stream[:cut]))
				_, _ = w.Write([]byte(tt.stream[cut:] + streamUsage + streamDone))
				got, err := w.JSON()
				if diff := cmp.Diff(tt.want, string(got)); err != nil || diff != "" {
					t.Fatalf("cut at %d: %v %s", cut, err, diff)
				}
			}
		})
	}
}

func TestWholeCompletion(t *testing.T) {
	var w Whole
	_, _ = w.Write([]byte(`data: {"choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}],"object":"text_completion"}` + "\n\n"))
	_, _ = w.Write([]byte(`data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"object":"text_completion","usage":{"total_tokens":3}}` + "\n\n" + streamDone))
	got, err := w.JSON()
	want := `{"choices":[{"finish_reason":"length","index":0,"logprobs":null,"text":"a"}],"object":"text_completion","usage":{"total_tokens":3}}`
	if err != nil || string(got) != want {
		t.Errorf("%v %s", err, got)
	}
}

func TestWholeOfABadStream(t *testing.T) {
	for name, stream := range map[string]string{
		"cut":        delta(`{"content":"a"}`) + streamUsage,
		"no account": delta(`{"content":"a"}`) + streamStop + streamDone,
		"not JSON":   "data: {\n\n" + streamUsage + streamDone,
	} {
		var w Whole
		_, _ = w.Write([]byte(stream))
		if got, err := w.JSON(); err == nil {
			t.Errorf("%s: %s, want an error", name, got)
		}
	}
	var w Whole
	_, _ = w.Write([]byte(delta(`{"content":"a"}`) + `data: {"error":{"code":400,"message":"too long","type":"x"}}` + "\n\n"))
	_, err := w.JSON()
	var refused *StreamError
	if !errors.As(err, &refused) || refused.Status() != 400 || refused.Error() != "too long" {
		t.Errorf("%v, want the backend's own error", err)
	}
}

func FuzzWhole(f *testing.F) {
	f.Add([]byte(delta(`{"content":"a"}`)+streamStop+streamUsage+streamDone), uint(9))
	f.Add([]byte(`data: {"choices":[{"text":1,"delta":{"a":{"b":2}},"finish_reason":{}}],"usage":1}`+"\n"+streamDone), uint(0))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint) {
		var one, two Whole
		_, _ = one.Write(stream)
		at := int(cut % uint(len(stream)+1))
		_, _ = two.Write(stream[:at])
		_, _ = two.Write(stream[at:])
		a, err1 := one.JSON()
		b, err2 := two.JSON()
		if (err1 == nil) != (err2 == nil) || !bytes.Equal(a, b) {
			t.Errorf("cut at %d: %s %v, whole: %s %v", at, b, err2, a, err1)
		}
		if err1 == nil && !json.Valid(a) {
			t.Errorf("not JSON: %s", a)
		}
	})
}

// TestWholeIsBounded has a stream say the same without end, in lines or without any: what is
// kept of it does not grow beyond the bound, and it is an error in the end.
func TestWholeIsBounded(t *testing.T) {
	text := strings.Repeat("a", 16<<10)
	for name, piece := range map[string]string{"events": delta(`{"content":"` + text + `"}`), "one line": text} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var w Whole
		for range 3 * mostWhole / len(piece) {
			_, _ = w.Write([]byte(piece))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if _, err := w.JSON(); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: %v", name, err)
		}
		if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 8<<20 {
			t.Errorf("%s: %d bytes are held", name, n)
		}
	}
}
