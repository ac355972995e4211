package vllm

import (
	"encoding/json"
	"maps"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/dialect"
	"millrace.dev/millrace/engine/internal/messages"
	"millrace.dev/millrace/internal/apis"
)

// Prepare puts right what the server has otherwise than the API, and asks streams for their
// account.
func (k *Kind) Prepare(a *enginepb.Assignment, r backend.Request) backend.Way {
	if fault := dialect.Unknown(r); fault != nil {
		return backend.Way{Refused: fault}
	}
	if fault := (dialect.Bounds{Choices: 5000, Answers: 2048}).Heavy(r); fault != nil {
		return backend.Way{Refused: fault}
	}
	switch r.API {
	case apis.Chat:
		return k.continued(r, chat(r))
	case apis.Responses, apis.InputTokens:
		return k.continued(r, response(r))
	case apis.Messages, apis.CountTokens:
		return message(r)
	case apis.Embeddings:
		w := asked(r)
		w.Batch, w.BatchTokens = int(a.GetBackend().GetSlots()), backend.BatchTokens
		return w
	}
	if severalGreedy(&r) {
		r.Body = backend.Encode(r.Fields)
	}
	return k.continued(r, asked(r))
}

// asked asks streams for their account, and has answers put right.
func asked(r backend.Request) backend.Way {
	w := backend.Way{Body: r.Body, Reform: dialect.Right(r)}
	if !r.Completion || !r.Stream {
		return w
	}
	w.Timed = true
	var added bool
	if w.Body, added = backend.AskUsage(r); added {
		w.Answer, w.Reform = backend.DropUsage, dialect.Unasked(w.Reform)
	}
	return w
}

// chat prepares a request for chat completions. The server knows one function's name in
// tool_choice, and no list of those that are allowed.
func chat(r backend.Request) backend.Way {
	calls, fault := dialect.ReadCalls(r.Fields)
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	other := calls != nil && !calls.Single() && calls.Apply(&r)
	if severalGreedy(&r) || other {
		r.Body = backend.Encode(r.Fields)
	}
	w := asked(r)
	w.Other = other
	return w
}

// severalGreedy has several choices be the most likely one each: the server refuses that
// at temperature 0, but not at its lowest one where one token alone can be sampled.
func severalGreedy(r *backend.Request) bool {
	var n, temperature float64
	if !backend.Given(r.Fields, "temperature") || json.Unmarshal(r.Fields["n"], &n) != nil || n < 2 || json.Unmarshal(r.Fields["temperature"], &temperature) != nil || temperature != 0 {
		return false
	}
	r.Fields = maps.Clone(r.Fields)
	r.Fields["temperature"], r.Fields["top_k"] = json.RawMessage("0.01"), json.RawMessage("1")
	return true
}

// response prepares a request for a response, which is made one for chat completions: the
// server's own say that an answer which the limit has cut is complete, don't say what was
// not stored, and can't be counted.
func response(r backend.Request) backend.Way {
	over, form, fault := dialect.OverChat(r, "count")
	if fault != nil {
		return backend.Way{Refused: fault}
	}
	w := chat(over)
	switch w.Path, w.Reform = apis.Chat.Row().Path, form; {
	case w.Refused != nil:
	case r.API.Row().OnlyCounts():
		w.Path = apis.Tokenize.Row().Path
	}
	return w
}

// message prepares a request for a message, which the server makes one for chat completions
// itself.
func message(r backend.Request) backend.Way {
	if fault := messages.Chosen(r.Fields); fault != nil {
		return backend.Way{Refused: fault}
	}
	return asked(r)
}
