package openai

import (
	"encoding/json"
	"fmt"
	"time"

	"millrace.dev/millrace/internal/apis"
)

// Error is an answer in the API's error form.
type Error struct {
	// Dialect is whose form that is.
	Dialect apis.Dialect
	// Status is the HTTP status.
	Status int
	// Message is for a person.
	Message string
	// Type is the API's class of error, for example "invalid_request_error".
	Type string
	// Param is the request field at fault; empty: none.
	Param string
	// Code is for a program; empty: none.
	Code string
	// RetryAfter is the least wait before another try, in seconds; 0: not said.
	RetryAfter int
	// Headers are further headers of the answer.
	Headers []Header
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// JSON returns the body of the answer.
func (e *Error) JSON() []byte {
	if e.Dialect == apis.Anthropic {
		return e.anthropic()
	}
	var body struct {
		Error struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    *string `json:"code"`
		} `json:"error"`
	}
	body.Error.Message, body.Error.Type = e.Message, e.Type
	body.Error.Param, body.Error.Code = orNull(e.Param), orNull(e.Code)
	b, err := json.Marshal(body)
	if err != nil { // strings always marshal
		panic(err)
	}
	return b
}

// anthropic is the answer in Anthropic's form. It has no place for the field at
// fault, which the message names.
func (e *Error) anthropic() []byte {
	var body struct {
		Type  string `json:"type"`
		Error struct {
			Type    string `json:"type"`
			Message string `json:"message"`
		} `json:"error"`
		RequestID *string `json:"request_id"` // null: Envoy says it in a header
	}
	body.Type = "error"
	body.Error.Type, body.Error.Message = anthropicType(e.Status), e.Message
	b, err := json.Marshal(body)
	if err != nil { // strings always marshal
		panic(err)
	}
	return b
}

// anthropicType is the class of errors that a status stands for.
func anthropicType(status int) string {
	switch status {
	case 401:
		return "authentication_error"
	case 403:
		return "permission_error"
	case 404:
		return "not_found_error"
	case 413:
		return "request_too_large"
	case 429:
		return "rate_limit_error"
	case 503, 529:
		return "overloaded_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// invalid returns a client's mistake.
func invalid(status int, param, code, format string, args ...any) *Error {
	return &Error{
		Status:  status,
		Message: fmt.Sprintf(format, args...),
		Type:    "invalid_request_error",
		Param:   param,
		Code:    code,
	}
}

// NotJSON answers a body that is not a JSON object; at is the offset of the
// first byte at fault.
func NotJSON(at int) *Error {
	return invalid(400, "", "invalid_json", "the request body is not a valid JSON object (at byte %d)", at)
}

// TooMany answers a request of more messages, media and prompts than are read.
func TooMany(n int) *Error {
	return invalid(400, "", "too_many_entries", "the request has %d messages, parts and inputs; must be %d at most", n, MaxEntries)
}

// NoModel answers a request that names no model.
func NoModel() *Error {
	return invalid(400, "model", "missing_required_parameter", "the request names no model: set \"model\" to one of GET /v1/models")
}

// ModelNotFound answers a request for a model that is not served here.
func ModelNotFound(model string) *Error {
	return invalid(404, "model", "model_not_found", "the model %q does not exist here: GET /v1/models lists those that do", clip(model, 96))
}

// NotForm answers a body that is not a form, and says why.
func NotForm(why string) *Error {
	return invalid(400, "", "invalid_form", "the request body is not valid multipart/form-data: %s", why)
}

// WrongContentType answers a body of another content type than its operation takes.
func WrongContentType(got string, takes apis.Reader) *Error {
	return invalid(415, "", "unsupported_content_type", "unsupported content type %q: this operation takes %s", clip(got, 96), takes.ContentType())
}

// WrongEncoding answers a body in a content encoding that is not known here.
func WrongEncoding(got string) *Error {
	return invalid(415, "", "unsupported_content_encoding",
		"unsupported content encoding %q: send gzip, deflate, zstd, or the body as it is", clip(got, 96))
}

// BadEncoding answers a body that is not what its content encoding says.
func BadEncoding(encoding string) *Error {
	return invalid(400, "", "invalid_content_encoding", "the request body is not valid %s, as its content-encoding says", clip(encoding, 96))
}

// TooLarge answers a body over the limit, in bytes.
func TooLarge(limit int64) *Error {
	return invalid(413, "", "request_too_large", "the request body is larger than %d bytes", limit)
}

// BadKey answers a request without an API key that is known, as OpenAI does.
func BadKey() *Error {
	return invalid(401, "", "invalid_api_key", "a valid API key is needed: send it as `Authorization: Bearer KEY`, or as x-api-key")
}

// TooLong answers a prompt of more tokens than the context has, in the words that the
// clients of both APIs look for.
func TooLong(dialect apis.Dialect, param string, tokens, context int) *Error {
	format := "the prompt is too long: it has %d tokens, and this model's maximum context length is %d tokens"
	if dialect == apis.Anthropic {
		format = "prompt is too long: %d tokens > %d maximum"
	}
	return invalid(400, param, "context_length_exceeded", format, tokens, context)
}

// OutOfRange answers a body with a number that its engine would take for another one.
func OutOfRange(l Large) *Error {
	field := clip(string(l.Field), 96)
	return invalid(400, field, "invalid_value", "%s: %.40s; must be between -%d and %d", field, l.Number, apis.MostNumber, apis.MostNumber)
}

// HeadersTooLarge answers a request with more headers than n, or than so many bytes of them.
func HeadersTooLarge(n, bytes int) *Error {
	return invalid(431, "", "headers_too_large", "the request has more than %d headers, or more than %d bytes of them", n, bytes)
}

// PathTooLong answers a request whose path, with its query, has more than n bytes.
func PathTooLong(n int) *Error {
	return invalid(414, "", "path_too_long", "the path with its query has more than %d bytes", n)
}

// NoLength answers a request whose content-length is none.
func NoLength() *Error {
	return invalid(400, "", "invalid_content_length", "content-length: must be a number of bytes, below 2^63")
}

// NotReady answers a request for a model none of whose replicas is ready, and says why; empty:
// nobody knows.
func NotReady(model, why string) *Error {
	if why != "" {
		why = " (" + clip(why, 512) + ")"
	}
	return &Error{
		Status:     503,
		Message:    fmt.Sprintf("no replica of the model %q is ready%s: try again shortly", clip(model, 96), why),
		Type:       "server_error",
		Code:       "no_replica_ready",
		RetryAfter: 1,
	}
}

// clip bounds what of a client's text is repeated to it.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// Hurts is the answer to a request that two engines had when they ended, for so long.
func Hurts(model string, wait time.Duration) *Error {
	return &Error{
		Status: 502,
		Message: fmt.Sprintf("model %q: two engines ended over this very request: it is sent to no other for %v; change it, or wait",
			clip(model, 96), wait.Round(time.Second)),
		Type:       "server_error",
		Code:       "engines_lost",
		RetryAfter: int(wait/time.Second) + 1,
		Headers:    []Header{{Name: "x-should-retry", Value: "false"}},
	}
}
