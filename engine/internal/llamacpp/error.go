package llamacpp

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Error is what the backend answers instead of a completion, in OpenAI's terms.
type Error struct {
	// Status is the HTTP status for the client.
	Status int
	// Message is for a person; Type and Code are for programs.
	Message, Type, Code string
}

// ParseError reads the body of an answer whose status is not 2xx.
func ParseError(status int, body []byte) Error {
	var reply struct {
		Error struct {
			Message string `json:"message"`
			Type    string `json:"type"`
		} `json:"error"`
	}
	e := Error{Status: status, Type: "invalid_request_error"}
	if err := json.Unmarshal(body, &reply); err == nil {
		e.Message = reply.Error.Message
	}
	if e.Message == "" {
		e.Message = "the backend answered " + http.StatusText(status)
	}
	switch kind := reply.Error.Type; {
	case kind == "exceed_context_size_error":
		e.Code = "context_length_exceeded"
	// An input of embeddings must fit one batch; the backend calls it its own fault.
	case strings.Contains(e.Message, "too large to process"):
		e.Status, e.Code = http.StatusBadRequest, "context_length_exceeded"
	case strings.Contains(e.Message, "not supported"):
		e.Status, e.Code = http.StatusBadRequest, "not_supported"
	// The backend can't read the request's messages or tools, which no other
	// engine could either; it calls that its own fault, too.
	case strings.Contains(e.Message, "Failed to parse"), strings.Contains(e.Message, "json.exception"):
		e.Status, e.Code = http.StatusBadRequest, "invalid_value"
	case status >= http.StatusInternalServerError:
		e.Type, e.Code = "server_error", "backend_error"
	}
	return e
}
