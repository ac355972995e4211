package llamacpp

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

// continues is how the rest of a stream is asked for; nil: not at all. The server renders a
// last message of the assistant's as it is, behind what the template begins an answer with,
// and parses reasoning and calls as if it had generated that itself. Its streams have texts
// and no ids of tokens (but in an answer's debugging page, which is some hundred bytes a
// token): the delivered text is tokenized again.
func (k *Kind) continues(r backend.Request, w backend.Way) *backend.Continue {
	c := &backend.Continue{Choices: 1, Way: resume.Way{
		Reasons: true, Mixed: true, Marks: marks,
		Prefilled: func(map[string]json.RawMessage) bool { return true },
	}}
	switch {
	case r.API == apis.Messages && w.Path == "": // the server's own
		c.Form, c.Count = resume.Message, k.counting(apis.CountTokens.Row().Path)
		c.Marks = nil
	case r.API == apis.Chat, r.API == apis.Responses, r.API == apis.Messages:
		c.Count = k.counting(apis.Chat.Row().Path + "/input_tokens")
	case r.API == apis.Completions:
		c.Form, c.Count = resume.Text, k.countText
	default:
		return nil
	}
	n, several := choices(r)
	if c.Choices = n; several && n == 1 {
		return nil // of several prompts
	}
	return c
}

// marks have the last message continued.
func marks(reasoning bool) map[string]json.RawMessage {
	part := json.RawMessage(`"content"`)
	if reasoning {
		part = json.RawMessage(`"reasoning_content"`)
	}
	return fields{"continue_final_message": part, "add_generation_prompt": json.RawMessage("false")}
}

// counting counts the tokens of a conversation as the template renders it.
func (k *Kind) counting(path string) func(context.Context, *enginepb.Assignment, map[string]json.RawMessage) (uint64, error) {
	return func(ctx context.Context, _ *enginepb.Assignment, request map[string]json.RawMessage) (uint64, error) {
		reply, err := k.do(ctx, http.MethodPost, path, backend.Encode(request))
		if err != nil {
			return 0, fmt.Errorf("counting: %w", err)
		}
		var counted struct {
			Tokens uint64 `json:"input_tokens"`
		}
		err = json.Unmarshal(reply, &counted)
		return counted.Tokens, err
	}
}

// countText counts the tokens of a completion's prompt, which may be of tokens already.
func (k *Kind) countText(ctx context.Context, _ *enginepb.Assignment, request map[string]json.RawMessage) (uint64, error) {
	reply, err := k.do(ctx, http.MethodPost, apis.Tokenize.Row().Path, backend.Encode(fields{
		"content": request["prompt"], "add_special": json.RawMessage("true"), "parse_special": json.RawMessage("true"),
	}))
	if err != nil {
		return 0, fmt.Errorf("counting: %w", err)
	}
	var counted struct {
		Tokens []json.RawMessage `json:"tokens"`
	}
	err = json.Unmarshal(reply, &counted)
	return uint64(len(counted.Tokens)), err
}
