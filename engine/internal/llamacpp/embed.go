package llamacpp

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// embed sends texts one at a time, unless they have equally many tokens: where several with
// unequal ones are in the server, whoever sent them, it pools of each only those tokens that the
// shortest does not have (its cache has a stream for each slot, and splits a batch into parts of
// equal length). It would also compute a list for a client that has left: it finds that out only when
// it has waited a second for a result.
func embed(a *enginepb.Assignment, r backend.Request) backend.Way {
	w := backend.Way{
		Body: r.Body, Single: a.GetBackend().GetSlots() > 1,
		Batch: int(a.GetBackend().GetSlots()), BatchTokens: int64(batch(a)), BatchEqual: true,
	}
	var texts []json.RawMessage
	if json.Unmarshal(r.Fields["input"], &texts) != nil {
		return w // one text, or what the server refuses
	}
	if len(texts) < 2 || texts[0][0] != '"' && texts[0][0] != '[' {
		return w // a list of numbers is one text
	}
	fields := maps.Clone(r.Fields)
	w.Parts = func(send func([]byte) bool) {
		for _, text := range texts {
			fields["input"] = backend.Encode([]json.RawMessage{text})
			if !send(backend.Encode(fields)) {
				return
			}
		}
	}
	w.Join = joinEmbeddings
	return w
}

// joinEmbeddings makes one list of several: the texts are numbered through, and what they
// took is summed. All else is as in the first one.
func joinEmbeddings(answers [][]byte) ([]byte, error) {
	var whole fields
	var data []fields
	usage := map[string]int64{}
	for _, answer := range answers {
		var part struct {
			Data  []fields `json:"data"`
			Usage struct {
				Prompt int64 `json:"prompt_tokens"`
				Total  int64 `json:"total_tokens"`
			} `json:"usage"`
		}
		var all fields
		if err := errors.Join(json.Unmarshal(answer, &part), json.Unmarshal(answer, &all)); err != nil {
			return nil, fmt.Errorf("embeddings: %w", err)
		}
		if whole == nil {
			whole = all
		}
		for _, d := range part.Data {
			if d == nil {
				return nil, errors.New("embeddings: null is none")
			}
			d["index"] = backend.Encode(len(data))
			data = append(data, d)
		}
		usage["prompt_tokens"] += part.Usage.Prompt
		usage["total_tokens"] += part.Usage.Total
	}
	if whole == nil {
		return nil, errors.New("embeddings: null is no list of them")
	}
	whole["data"], whole["usage"] = backend.Encode(data), backend.Encode(usage)
	return backend.Encode(whole), nil
}
