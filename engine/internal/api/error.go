package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"millrace.dev/millrace/engine/internal/backend"
)

// apiError is an error in the API's own form.
type apiError struct {
	status  int
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

// Types of errors.
const (
	invalidRequest = "invalid_request_error"
	serverError    = "server_error"
	rateLimit      = "rate_limit_error"
)

// retryAfter is how long a client should wait, in seconds, where another try may do.
const retryAfter = "1"

// Error returns the message.
func (e *apiError) Error() string { return e.Message }

func (e *apiError) write(w http.ResponseWriter) {
	if e.status == http.StatusServiceUnavailable || e.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", retryAfter)
	}
	writeJSON(w, e.status, map[string]*apiError{"error": e})
}

// writeAnthropic writes the error in the form of Anthropic's API, as the answer to r.
func (e *apiError) writeAnthropic(w http.ResponseWriter, r *http.Request) {
	if e.status == http.StatusServiceUnavailable || e.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", retryAfter)
	}
	writeJSON(w, e.status, anthropicError(r, anthropicType(e.status), e.Message))
}

// anthropicError is an error in the form of Anthropic's API.
func anthropicError(r *http.Request, kind, message string) any {
	var id any // null: not known
	if known := r.Header.Get("X-Request-Id"); known != "" {
		id = known
	}
	return map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": message}, "request_id": id}
}

// anthropicType is the class of errors that a status stands for.
func anthropicType(status int) string {
	switch {
	case status == http.StatusNotFound:
		return "not_found_error"
	case status == http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status == http.StatusServiceUnavailable:
		return "overloaded_error"
	case status >= http.StatusInternalServerError:
		return "api_error"
	}
	return invalidRequest
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func badRequest(param, format string, args ...any) *apiError {
	e := &apiError{status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...), Type: invalidRequest}
	if param != "" {
		e.Param = &param
	}
	return e
}

func notFound(message, code string) *apiError {
	e := &apiError{status: http.StatusNotFound, Message: message, Type: invalidRequest}
	if code != "" {
		e.Code = &code
	}
	return e
}

// modelParam is the field that is wrong where another model would do.
var modelParam = "model"

func unknownModel(id string) *apiError {
	e := notFound(fmt.Sprintf("the model %.200q does not exist here", id), "model_not_found")
	e.Param = &modelParam
	return e
}

func coded(status int, kind, code, message string) *apiError {
	return &apiError{status: status, Message: message, Type: kind, Code: &code}
}

func notReady(why string) *apiError {
	return coded(http.StatusServiceUnavailable, serverError, "not_ready", "not ready: "+why)
}

// codeLost is the code of an error that is the backend's end.
const codeLost = "backend_lost"

func backendLost(why string) *apiError {
	return coded(http.StatusServiceUnavailable, serverError, codeLost, "the backend was lost: "+why)
}

func full(err error) *apiError {
	return coded(http.StatusTooManyRequests, rateLimit, "queue_full", err.Error())
}

// fromBackend is the backend's own refusal.
func (c *call) fromBackend(status int, body []byte) *apiError {
	b := c.backend.Error(status, body)
	if b.Lacks() && !c.op.passes {
		// By its own status Envoy would try it on all other replicas, which have the same model.
		if b.Status != http.StatusNotImplemented { // which says more
			b.Message = fmt.Sprintf("the model %q can't be asked for %s", c.req.model, c.op.Path)
		}
		e := coded(http.StatusBadRequest, invalidRequest, "unsupported_operation", b.Message)
		e.Param = &modelParam
		return e
	}
	return fromError(b)
}

// fromError is a refusal in the backend's terms.
func fromError(b backend.Error) *apiError {
	e := &apiError{status: b.Status, Message: b.Message, Type: b.Type}
	if b.Code != "" {
		e.Code = &b.Code
	}
	if b.Param != "" {
		e.Param = &b.Param
	}
	return e
}
