package llamacpp

import (
	"bytes"
	"encoding/json"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
)

// The server checks a unary request's connection only after a second without a
// result for anybody: beside a running stream it never finds out that the client
// has left. It finds out at the next token of a stream. So we ask for a stream and
// make the unary answer of it.

// asStream follows the fields of a unary request. The server takes the last of
// two fields of one name.
const asStream = `,"stream":true,"stream_options":{"include_usage":true}}`

// It fits into the room that a body leaves.
const _ = uint(backend.Room - len(asStream))

// unaryOnly are the fields with which a stream does not hold what the unary answer
// does (of a stop word that began and did not end, the beginning), or nobody has
// compared the two. One difference is left: of a character that max_tokens cuts,
// the unary answer holds U+FFFD, a stream nothing.
var unaryOnly = []string{
	"stop", "n_indent", "n", "n_cmpl", "best_of", "echo", "logprobs", "top_logprobs", "n_probs", "tools", "functions",
	"stream_options", "timings_per_token", "return_progress", "return_tokens", "response_fields", "verbose",
}

// streamable reports whether backend.Whole gives the server's own answer to a unary
// request for a completion, chat or not, with these fields.
func streamable(fields map[string]json.RawMessage) bool {
	if p := fields["prompt"]; len(p) > 0 && p[0] != '"' {
		return false // several prompts
	}
	return !slices.ContainsFunc(unaryOnly, func(name string) bool {
		v := string(fields[name])
		return v != "" && v != "null" && v != "false" && (name != "n" || v != "1")
	})
}

// appendStream turns the body of a unary request, a JSON object with a field or more,
// into that of a stream. It may change what lies behind body.
func appendStream(body []byte) []byte {
	body = bytes.TrimRight(body, " \t\r\n")
	return append(body[:len(body)-1], asStream...)
}
