package backend

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// ParseError reads an error in OpenAI's form, as most servers have it.
func ParseError(status int, body []byte) Error {
	e := Error{Status: status, Message: Message(status, body), Type: "invalid_request_error"}
	var reply struct {
		Error struct {
			Type string          `json:"type"`
			Code json.RawMessage `json:"code"` // a number with some servers
			// Param is null where no field is to blame.
			Param json.RawMessage `json:"param"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &reply) == nil {
		var code string
		if json.Unmarshal(reply.Error.Code, &code) == nil {
			e.Code = code
		}
		_ = json.Unmarshal(reply.Error.Param, &e.Param) // no text: none
	}
	switch {
	case status >= http.StatusInternalServerError:
		e.Type, e.Code = "server_error", "backend_error"
	case status == http.StatusTooManyRequests:
		e.Type = "rate_limit_error"
	case e.Code == "" && strings.Contains(e.Message, "maximum context length"):
		e.Code = "context_length_exceeded"
	case reply.Error.Type != "" && strings.HasSuffix(reply.Error.Type, "_error"):
		e.Type = reply.Error.Type
	}
	return e
}

// bare are the messages with which servers answer for a path that they don't have, in lower
// case. What was asked about and is not there is named.
var bare = []string{"not found", "file not found", "the backend answered not found", "invalid url"}

// Lacks reports whether the error says that the server has no such operation.
func (e *Error) Lacks() bool {
	switch e.Status {
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusNotFound:
		message := strings.ToLower(e.Message)
		return e.Param == "" && e.Code == "" && slices.ContainsFunc(bare, func(b string) bool { return strings.HasPrefix(message, b) })
	}
	return false
}
