package e2e

import (
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// account is what an answer says of its tokens, in any of the APIs.
type account struct {
	Usage struct {
		Completion int `json:"completion_tokens"`
		Output     int `json:"output_tokens"`
	} `json:"usage"`
}

// TestLimitsHold sends what a backend honours beside the API's own limits: no answer has
// more tokens than the API's limit, or the field is refused by its name.
func TestLimitsHold(t *testing.T) {
	m := shared(t)
	const messages = `"messages":[{"role":"user","content":"Count to a hundred."}]`
	tests := []struct {
		name, path, fields string
		most               int
		refused            string
	}{
		{"llama.cpp's limit", rig.ChatPath, messages + `,"max_tokens":1,"n_predict":40`, 1, ""},
		{"no end, as llama.cpp has it", rig.ChatPath, messages + `,"max_tokens":1,"n_predict":-1,"ignore_eos":true`, 1, ""},
		{"the older limit", rig.ChatPath, messages + `,"max_completion_tokens":1,"max_tokens":40`, 1, ""},
		{"that of another operation", "/v1/completions", `"prompt":"One two","max_tokens":1,"max_completion_tokens":40`, 1, ""},
		{"llama.cpp's limit alone", rig.ChatPath, messages + `,"n_predict":3,"ignore_eos":true`, 3, ""},
		{"Anthropic's", "/v1/messages", messages + `,"max_tokens":1,"n_predict":40`, 1, ""},
		{"of responses", "/v1/responses", `"input":"Count to a hundred.","max_output_tokens":1,"max_tokens":40`, 1, ""},
		{"a slot", rig.ChatPath, messages + `,"max_tokens":1,"id_slot":0`, 0, "id_slot"},
		{"an answer without its account", rig.ChatPath, messages + `,"max_tokens":1,"response_fields":["choices"]`, 0, "response_fields"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := rig.Send(t.Context(), m.URL(t, tt.path), strings.NewReader(`{"model":"`+rig.Model+`",`+tt.fields+`}`), "content-type", "application/json")
			if err != nil {
				t.Fatal(err)
			}
			if tt.refused != "" {
				if a.Status != 400 || !strings.Contains(string(a.Body), tt.refused) {
					t.Errorf("status %d: %.300s; want a refusal of %s", a.Status, a.Body, tt.refused)
				}
				return
			}
			got := rig.Decode[account](t, a.Body)
			if n := max(got.Usage.Completion, got.Usage.Output); a.Status != 200 || n != tt.most {
				t.Errorf("status %d, %d tokens, want %d: %.300s", a.Status, n, tt.most, a.Body)
			}
		})
	}
}
