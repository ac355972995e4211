package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// readFor bounds how long a client may take to send a body.
const readFor = time.Minute

// bytesPerToken turns the size of a body into tokens where nobody has counted.
const bytesPerToken = 4

// request is what the engine has to know of a body; the backend reads the rest.
type request struct {
	model  string
	stream bool
	// limit is the largest number of tokens to generate of an answer, answers how many
	// are generated, least what each has at least; 0: not said. endless is whether the
	// model can't end one.
	limit, answers, least int64
	endless               bool
	// truncates is whether a prompt that is too long is to be cut.
	truncates bool
	// renamed are the fields that the backend gets under another name; "": not at all.
	renamed map[string]string
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
	if op.Reader == apis.JSON {
		body = apis.Unmarked(body)
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
	if err := numbers(fields); err != nil {
		return q, err
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
	if json.Unmarshal(body, &q.fields) != nil {
		return q
	}
	// By way of a struct, "Model" would do, too: no backend takes it.
	var named string
	if json.Unmarshal(q.fields["model"], &named) == nil && named != "" {
		q.model = named
		_ = json.Unmarshal(q.fields["stream"], &q.stream)
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
	v, ok := fields["truncate_prompt_tokens"]
	q.truncates = ok && string(v) != "null" || string(fields["truncation"]) == `"auto"`
	if !op.Generates {
		q.answers = listed(fields[op.Input])
		return nil
	}
	if err := q.readLimits(op, fields); err != nil {
		return err
	}
	return q.readAnswers(fields)
}

// numbers refuses what would be another number in a backend.
func numbers(fields map[string]json.RawMessage) *apiError {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		raw := fields[name]
		if c := raw[0]; c != '-' && (c < '0' || c > '9') {
			continue
		}
		if !apis.Holds(name, raw) {
			return badRequest(name, "%s: %.40s; must be between -%d and %d", name, raw, apis.MostNumber, apis.MostNumber)
		}
	}
	return nil
}

// readLimits reads what bounds an answer. The first of the operation's own limits counts,
// and it alone goes to the backend: which of several counts there, nobody need know. Without
// one of them a limit of another operation, or of a backend's own, takes its place.
func (q *request) readLimits(op operation, fields map[string]json.RawMessage) *apiError {
	counts := ""
	for _, name := range slices.Concat(op.Limits, apis.Limits[:]) {
		raw, given := fields[name]
		own := slices.Contains(op.Limits, name)
		var n int64
		if err := field(fields, name, "an integer", &n); err != nil {
			return err
		}
		switch {
		case !given || name == counts:
		case own && n < 0:
			return badRequest(name, "%s: %d; must be ≥ 0", name, n)
		case counts != "" || n < 0 || string(raw) == "null": // below 0 means none to a backend
			q.rename(name, "")
		default:
			counts, q.limit = name, n
			if !own {
				q.rename(name, op.Limits[len(op.Limits)-1])
			}
		}
	}
	return nil
}

// readAnswers reads how many answers are generated, and what their length is at least.
func (q *request) readAnswers(fields map[string]json.RawMessage) *apiError {
	for i, name := range apis.Choices {
		n := int64(1)
		if err := field(fields, name, "an integer", &n); err != nil {
			return err
		}
		if n < 1 || n > mostAnswers {
			return badRequest(name, "%s: %d; must be 1 to %d", name, n, mostAnswers)
		}
		q.answers = max(q.answers, n)
		if _, given := fields[name]; given && i == len(apis.Choices)-1 { // no API's: a backend's own name for the first
			q.rename(name, "")
			if _, also := fields[apis.Choices[0]]; !also {
				q.rename(name, apis.Choices[0])
			}
		}
	}
	if err := field(fields, "min_tokens", "an integer", &q.least); err != nil {
		return err
	}
	if err := field(fields, "ignore_eos", "true or false", &q.endless); err != nil {
		return err
	}
	q.answers *= listed(fields["prompt"])
	return nil
}

// mostAnswers bounds how many answers one request may want.
const mostAnswers = 128

// listed is how many prompts there are.
func listed(prompt json.RawMessage) int64 {
	var list []json.RawMessage
	if len(prompt) == 0 || prompt[0] != '[' || json.Unmarshal(prompt, &list) != nil {
		return 1
	}
	n := int64(0)
	for _, p := range list {
		if p[0] == '"' || p[0] == '[' || p[0] == '{' {
			n++
		}
	}
	return max(1, n) // one, as token ids
}

// rename has the backend get a field under another name; "": not at all.
func (q *request) rename(name, to string) {
	if q.renamed == nil {
		q.renamed = map[string]string{}
	}
	q.renamed[name] = to
}

// apply renames the fields of a body.
func (q *request) apply(body []byte) []byte {
	if len(q.renamed) == 0 {
		return body
	}
	for name, to := range q.renamed {
		if to != "" {
			q.fields[to] = q.fields[name]
		}
		delete(q.fields, name)
	}
	return backend.Rename(body, q.renamed)
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
	if n, exact := counted(r); exact {
		return n
	}
	return int64(size/bytesPerToken) + 1
}
