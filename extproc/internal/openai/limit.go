package openai

import (
	"fmt"
	"strconv"
	"time"
)

// Header is a header of an answer.
type Header struct{ Name, Value string }

// Overloaded answers a request for a model all of whose replicas are busy, and which
// is not to wait, or has waited long enough.
func Overloaded(model, priority string, retry time.Duration) *Error {
	return &Error{
		Status:     429,
		Message:    fmt.Sprintf("all replicas of the model %q are busy, and this %s request can't be served in time: try again later", clip(model, 96), priority),
		Type:       "rate_limit_error",
		Code:       "overloaded",
		RetryAfter: seconds(retry),
	}
}

// Busy answers a request whose body there is no room for now.
func Busy() *Error {
	return &Error{
		Status: 503, Message: "too many request bodies are being held: try again shortly",
		Type: "server_error", Code: "overloaded", RetryAfter: 1,
	}
}

// Limit is what is left of a limit.
type Limit struct {
	// Of is what is limited: "requests" or "tokens".
	Of string
	// Most is the limit, in a minute; 0: there is none.
	Most, Remaining int64
	// Reset is until all of it is there again.
	Reset time.Duration
}

// OverLimit answers a request of a tenant that has used up one of its limits, of what
// over says.
func OverLimit(over string, retry time.Duration, all ...Limit) *Error {
	e := &Error{Status: 429, Type: over, Code: "rate_limit_exceeded", RetryAfter: seconds(retry)}
	for _, l := range all {
		if l.Most <= 0 {
			continue
		}
		if l.Of == over {
			e.Message = fmt.Sprintf("rate limit reached: %d %s per minute, %d remaining: try again in %ds", l.Most, l.Of, l.Remaining, e.RetryAfter)
		}
		e.Headers = append(e.Headers,
			Header{"x-ratelimit-limit-" + l.Of, strconv.FormatInt(l.Most, 10)},
			Header{"x-ratelimit-remaining-" + l.Of, strconv.FormatInt(l.Remaining, 10)},
			Header{"x-ratelimit-reset-" + l.Of, l.Reset.Round(time.Millisecond).String()})
	}
	return e
}

// seconds is a wait in whole seconds, at least 1.
func seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}
