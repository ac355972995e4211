package backend

import (
	"fmt"
	"strings"
	"testing"
)

// TestEachDelta has what servers are known to stream otherwise.
func TestEachDelta(t *testing.T) {
	calls := func(all ...string) (stream string) {
		for _, c := range all {
			stream += `data: {"choices":[{"delta":{"tool_calls":[` + c + `]}}],"error":null}` + "\n\n"
		}
		return stream
	}
	for name, tt := range map[string]struct{ stream, want string }{
		"an error that is null": {`data: {"choices":[{"delta":{"content":"a"}}],"error":null}` + "\n\n", "a"},
		"an error":              {`data: {"error":{"message":"lost"}}` + "\n\n", "failed"},
		"an index": {
			calls(`{"index":0,"id":"x","function":{"name":"f"}},{"index":1,"id":"y","function":{"name":"g"}}`, `{"index":0,"function":{"arguments":"1"}}`, `{"index":1,"function":{"arguments":"2"}}`),
			"0f 1g 0(1) 1(2)",
		},
		"no index":             {calls(`{"id":"x","function":{"name":"f"}}`, `{"function":{"arguments":"1"}}`, `{"id":"y","function":{"name":"f","arguments":"2"}}`, `{"function":{"arguments":"3"}}`), "0f 0(1) 1f(2) 1(3)"},
		"an id in every part":  {calls(`{"id":"x","function":{"name":"f"}}`, `{"id":"x","function":{"arguments":"1"}}`, `{"id":"y","function":{"name":"f"}}`), "0f 0(1) 1f"},
		"neither index nor id": {calls(`{"function":{"name":"f","arguments":"1"}},{"function":{"name":"f","arguments":"2"}}`, `{"function":{"arguments":"3"}}`), "0f(1) 1f(2) 1(3)"},
	} {
		var l Lines
		var got []string
		l.EachDelta([]byte(tt.stream), func(d Delta, _ string) {
			if d.Failed {
				got = append(got, "failed")
			}
			if d.Content != "" {
				got = append(got, d.Content)
			}
			for _, c := range d.Calls {
				part := fmt.Sprint(c.Index, c.Name)
				if c.Arguments != "" {
					part += "(" + c.Arguments + ")"
				}
				got = append(got, part)
			}
		})
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}
