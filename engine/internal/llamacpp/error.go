package llamacpp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"millrace.dev/millrace/engine/internal/backend"
)

// parseError reads the body of an answer whose status is not 2xx. The server blames
// itself for much that is the client's fault.
func parseError(status int, body []byte) backend.Error {
	var reply struct {
		Error struct {
			Type string `json:"type"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &reply)
	e := backend.Error{Status: status, Type: "invalid_request_error", Message: backend.Message(status, body)}
	switch kind := reply.Error.Type; {
	case kind == "exceed_context_size_error":
		e.Code = "context_length_exceeded"
	// An input of embeddings must fit one batch; the backend calls it its own fault.
	case strings.Contains(e.Message, "too large to process"):
		e.Status, e.Code, e.Param = http.StatusBadRequest, "context_length_exceeded", "input"
		var is, most int
		if _, err := fmt.Sscanf(e.Message, "input (%d tokens) is too large to process. increase the physical batch size (current batch size: %d)", &is, &most); err == nil {
			e.Message = fmt.Sprintf("input: %d tokens; this model takes at most %d of one input of embeddings: split it", is, most)
		}
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
