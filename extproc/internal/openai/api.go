// Package openai decodes what the picker must know of a request of the API, in one pass
// over its bytes, and writes errors in the API's own form. Which operations there are
// says package apis.
//
// It is called by stream for every request. Its one rule: bytes from a client
// never make it panic, and a JSON body that it accepts is valid JSON.
package openai

import "millrace.dev/millrace/internal/apis"

// anthropic reports whether a body has Anthropic's fields.
func (r *Request) anthropic() bool { return r.API.Row().Dialect == apis.Anthropic }
