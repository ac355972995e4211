package vllm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/resume"
	"millrace.dev/millrace/internal/apis"
)

// continued adds how the rest of a stream is asked for. The server has no way to continue
// its own messages, or reasoning, and gives several choices one account.
func (k *Kind) continued(r backend.Request, w backend.Way) backend.Way {
	n := 1
	_ = json.Unmarshal(r.Fields["n"], &n) // the server refuses what is no number
	if !r.Stream || w.Refused != nil || n != 1 {
		return w
	}
	c := &backend.Continue{Choices: 1, Count: k.count, Way: resume.Way{
		Marks: func(bool) map[string]json.RawMessage {
			return map[string]json.RawMessage{"continue_final_message": json.RawMessage("true"), "add_generation_prompt": json.RawMessage("false")}
		},
		Prefilled: func(request map[string]json.RawMessage) bool {
			return string(request["continue_final_message"]) == "true"
		},
	}}
	switch r.API {
	case apis.Chat, apis.Responses:
	case apis.Completions:
		c.Form = resume.Text
	default:
		return w
	}
	w.Continue = c
	return w
}

// counted are the fields that say what a prompt is.
var counted = []string{"model", "messages", "prompt", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens"}

// count asks the server how many tokens a prompt has.
func (k *Kind) count(ctx context.Context, a *enginepb.Assignment, request map[string]json.RawMessage) (uint64, error) {
	asked := map[string]json.RawMessage{}
	for _, name := range counted {
		if v, ok := request[name]; ok {
			asked[name] = v
		}
	}
	reply, err := k.client.Do(ctx, http.MethodPost, k.URL(a)+apis.Tokenize.Row().Path, backend.Encode(asked))
	if err != nil {
		return 0, fmt.Errorf("counting: %w", err)
	}
	var tokens struct {
		Count uint64 `json:"count"`
	}
	err = json.Unmarshal(reply, &tokens)
	return tokens.Count, err
}
