package openai

import (
	"encoding/json"

	"millrace.dev/millrace/internal/apis"
)

// RewriteModel returns a new body in which the value of the top-level "model" is
// replaced: of several the last, which is the one that counts. A body that is not
// a JSON object, or has no model, comes back as it is.
func RewriteModel(body []byte, model string) []byte {
	var r Request
	if r.Parse(apis.Other, body) != nil {
		return body
	}
	return r.WithModel(nil, model)
}

// HasModel reports whether the body names the model in a place where it can be replaced.
func (r *Request) HasModel() bool { return r.named != span{} }

// WithModel appends to dst the body with another model. Without a model in it
// that is the body itself.
func (r *Request) WithModel(dst []byte, model string) []byte {
	if !r.HasModel() {
		return append(dst, r.Raw...)
	}
	name := []byte(model)
	if !r.form {
		var err error
		if name, err = json.Marshal(model); err != nil { // strings always marshal
			panic(err)
		}
	}
	dst = append(dst, r.Raw[:r.named.from]...)
	dst = append(dst, name...)
	return append(dst, r.Raw[r.named.to:]...)
}
