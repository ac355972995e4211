package dialect

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// list joins n values.
func list(n int, format string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(all, ",")
}

func TestHeavy(t *testing.T) {
	schema := func(s string) string {
		return `"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":` + s + `}}`
	}
	object := func(n int, more string) string {
		return `{"type":"object","properties":{` + list(n, `"p%d":{"type":"string"}`) + `}` + more + `}`
	}
	tests := []struct {
		name, fields string
		api          apis.API
		want         string // the field that is refused
	}{
		{"a usual schema", schema(object(30, "")), apis.Chat, ""},
		{"a large one without choices", schema(object(400, `,"required":[`+list(400, `"p%d"`)+`]`)), apis.Chat, ""},
		{"what may be left out", schema(object(513, "")), apis.Chat, "response_format"},
		{"in objects of objects", schema(`{"type":"object","properties":{` + list(30, `"o%d":`+object(20, "")) + `}}`), apis.Chat, "response_format"},
		{"an enum", schema(`{"enum":[` + list(600, `"v%d"`) + `]}`), apis.Chat, "response_format"},
		{"a fair one", schema(`{"enum":[` + list(200, `"v%d"`) + `]}`), apis.Chat, ""},
		{"alternatives", schema(`{"anyOf":[` + list(600, `{"const":%d}`) + `]}`), apis.Chat, "response_format"},
		{"properties without end", schema(object(5001, `,"required":[`+list(5001, `"p%d"`)+`]`)), apis.Chat, "response_format"},
		{"nested without end", schema(strings.Repeat(`{"type":"array","items":`, 200) + `{}` + strings.Repeat("}", 200)), apis.Chat, "response_format"},
		{"of responses", `"text":{"format":{"type":"json_schema","schema":` + object(600, "") + `}}`, apis.Responses, "text"},
		{"of messages", `"output_config":{"format":{"type":"json_schema","schema":` + object(600, "") + `}}`, apis.Messages, "output_config"},
		{"of a server's own", `"json_schema":` + object(600, ""), apis.Chat, "json_schema"},
		{"of tools", `"tools":[` + list(30, `{"type":"function","function":{"name":"f%d","parameters":`+object(20, "")+`}}`) + `]`, apis.Chat, "tools"},
		{"a grammar", `"grammar":"` + strings.Repeat("a", 20<<10) + `"`, apis.Chat, "grammar"},
		{"a long description", `"tools":[{"type":"function","function":{"name":"f","description":"` + strings.Repeat("a", 20<<10) + `","parameters":{}}}]`, apis.Chat, ""},
		{"samplers", `"samplers":[` + list(2000, `"dry%d"`) + `]`, apis.Chat, "samplers"},
		{"a fair logit_bias", `"logit_bias":{` + list(1000, `"%d":1`) + `}`, apis.Chat, ""},
		{"logit_bias", `"logit_bias":{` + list(1100, `"%d":1`) + `}`, apis.Chat, "logit_bias"},
		{"logit_bias of lists", `"logit_bias":[` + list(600, `[%d,1]`) + `]`, apis.Chat, "logit_bias"},
		{"a text with commas", `"unknown":"` + strings.Repeat(",", 2000) + `"`, apis.Chat, ""},
		{"texts with commas", `"stop":["` + strings.Repeat(`,{\"`, 2000) + `"]`, apis.Chat, ""},
		{"stops", `"stop":[` + list(2000, `"s%d"`) + `]`, apis.Chat, "stop"},
		{"a conversation", `"messages":[` + list(5000, `{"role":"user","content":"%d"}`) + `]`, apis.Chat, ""},
		{"logprobs", `"logprobs":true,"top_logprobs":20`, apis.Chat, ""},
		{"all logprobs", `"logprobs":true,"top_logprobs":21`, apis.Chat, "top_logprobs"},
		{"those of a server's own", `"n_probs":1000`, apis.Chat, "n_probs"},
		{"of completions", `"logprobs":1e3`, apis.Completions, "logprobs"},
		{"prompts", `"prompt":[` + list(200, `"%d"`) + `]`, apis.Completions, ""},
		{"too many", `"prompt":[` + list(300, `"%d"`) + `]`, apis.Completions, "prompt"},
		{"with several answers", `"prompt":[` + list(30, `[%d]`) + `],"n":10`, apis.Completions, "prompt"},
		{"answers without end", `"prompt":["a","b"],"n":9223372036854775807`, apis.Completions, "prompt"},
		{"the ids of one", `"prompt":[` + list(3000, `%d`) + `]`, apis.Completions, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := backend.Request{API: tt.api}
			if err := json.Unmarshal([]byte("{"+tt.fields+"}"), &r.Fields); err != nil {
				t.Fatal(err)
			}
			fault := Bounds{Choices: 512, Answers: 256}.Heavy(r)
			got := ""
			if fault != nil {
				got = fault.Param
			}
			if got != tt.want || fault != nil && fault.Status != 400 {
				t.Errorf("%+v; want %q refused", fault, tt.want)
			}
		})
	}
}
