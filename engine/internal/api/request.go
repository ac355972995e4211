package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// readFor bounds how long a client may take to send a body.
const readFor = time.Minute

// bytesPerToken turns the size of a body into tokens where nobody has counted.
const bytesPerToken = 4

// request is what the engine has to know of a body; the backend reads the rest.
type request struct {
	model  string
	stream bool
	// limit is the largest number of tokens to generate; 0: not said.
	limit int64
	// fields are those of the body.
	fields map[string]json.RawMessage
}

// readBody reads a body of at most limit bytes, of the type that its operation takes.
func readBody(op operation, w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *apiError) {
	if kind := r.Header.Get("Content-Type"); !op.passes && !op.Reader.Accepts(kind) {
		return nil, &apiError{
			status: http.StatusUnsupportedMediaType, Type: invalidRequest,
			Message: fmt.Sprintf("content-type %.100q; must be %s", kind, op.Reader.ContentType()),
		}
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(readFor))
	body, err := readAll(http.MaxBytesReader(w, r.Body, limit), r.ContentLength)
	_ = deadline.SetReadDeadline(time.Time{})
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge(limit)
	case err != nil:
		return nil, badRequest("", "reading the body: %v", err)
	}
	return body, nil
}

// readAll reads r, which should hold size bytes; -1: not known.
func readAll(r io.Reader, size int64) ([]byte, error) {
	if size < 0 {
		return io.ReadAll(r)
	}
	b := make([]byte, size, size+backend.Room)
	_, err := io.ReadFull(r, b)
	return b, err
}

func tooLarge(limit int64) *apiError {
	return coded(http.StatusRequestEntityTooLarge, invalidRequest, "request_too_large", fmt.Sprintf("the body is larger than %d bytes", limit))
}

// parse checks what must be right of a body whoever the backend is.
func parse(op operation, body []byte) (request, *apiError) {
	var q request
	if op.Reader == apis.Form {
		return q, nil // the backend decodes it
	}
	if !utf8.Valid(body) {
		return q, badRequest("", "the body is not UTF-8")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return q, badRequest("", "the body is not a JSON object: %v", err)
	}
	if fields == nil {
		return q, badRequest("", "the body is not a JSON object: null")
	}
	if err := q.read(op, fields); err != nil {
		return q, err
	}
	q.fields = fields
	if op.Input == "" {
		return q, nil
	}
	return q, checkContent(op, fields[op.Input])
}

// glance takes what it can of a body that is forwarded whatever it holds. One that
// names no model is for the one that is served.
func glance(body []byte, model string) request {
	q := request{model: model}
	var named struct {
		Model  string `json:"model"`
		Stream bool   `json:"stream"`
	}
	if json.Unmarshal(body, &q.fields) == nil && json.Unmarshal(body, &named) == nil && named.Model != "" {
		q.model, q.stream = named.Model, named.Stream
	}
	return q
}

func (q *request) read(op operation, fields map[string]json.RawMessage) *apiError {
	if err := field(fields, "model", "a string", &q.model); err != nil {
		return err
	}
	if q.model == "" && !op.AnyModel {
		return badRequest("model", "model is missing")
	}
	if err := field(fields, "stream", "true or false", &q.stream); err != nil {
		return err
	}
	for _, name := range op.Limits {
		var n int64
		if err := field(fields, name, "an integer", &n); err != nil {
			return err
		}
		if n < 0 {
			return badRequest(name, "%s: %d; must be ≥ 0", name, n)
		}
		if q.limit == 0 {
			q.limit = n
		}
	}
	return nil
}

// field decodes one field; one that is absent or null leaves into as it is.
func field(fields map[string]json.RawMessage, name, want string, into any) *apiError {
	raw, ok := fields[name]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return badRequest(name, "%s: %.40s; must be %s", name, raw, want)
	}
	return nil
}

// checkContent wants a string or a list that is not empty; messages are a list.
func checkContent(op operation, raw json.RawMessage) *apiError {
	name := op.Input
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return badRequest(name, "%s is missing", name)
	case raw[0] == '[' && emptyList(raw):
		return badRequest(name, "%s is empty", name)
	case raw[0] == '[', raw[0] == '"' && name != "messages":
		return nil
	case name == "messages":
		return badRequest(name, "messages must be a list")
	}
	return badRequest(name, "%s must be a string or a list", name)
}

// emptyList reports whether a valid JSON array is empty.
func emptyList(raw json.RawMessage) bool {
	for _, c := range raw[1:] {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c == ']'
		}
	}
	return true
}

// promptTokens is extproc's exact count, or an estimate from the size.
func promptTokens(r *http.Request, size int) int64 {
	if n, err := strconv.ParseInt(r.Header.Get(wire.PromptTokensHeader), 10, 32); err == nil && n > 0 {
		return n
	}
	return int64(size/bytesPerToken) + 1
}
