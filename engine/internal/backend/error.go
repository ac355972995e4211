package backend

import (
	"encoding/json"
	"net/http"
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
