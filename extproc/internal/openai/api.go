// Package openai reads what the picker must know from a request of the OpenAI
// API, or of Anthropic's, in one pass over its bytes, and writes errors in the
// API's own form.
//
// It is called by stream for every request. Its one rule: bytes from a client
// never make it panic, and a body that it accepts is valid JSON.
package openai

import "strings"

// API is one of the operations of the OpenAI API, or of Anthropic's.
type API uint8

const (
	// Other is any operation that the picker does not know: it is passed on and
	// routed by load.
	Other API = iota
	// Chat is POST /v1/chat/completions.
	Chat
	// Completions is POST /v1/completions.
	Completions
	// Embeddings is POST /v1/embeddings.
	Embeddings
	// Responses is POST /v1/responses.
	Responses
	// Messages is Anthropic's POST /v1/messages.
	Messages
	// CountTokens is Anthropic's POST /v1/messages/count_tokens: nothing is generated.
	CountTokens
	// APIs is their number.
	APIs = iota
)

// String returns the operation's name as metrics and spans show it.
func (a API) String() string {
	switch a {
	case Chat:
		return "chat"
	case Completions:
		return "completions"
	case Embeddings:
		return "embeddings"
	case Responses:
		return "responses"
	case Messages:
		return "messages"
	case CountTokens:
		return "count_tokens"
	default:
		return "other"
	}
}

// APIOf returns the operation that method and path (with or without /v1, query
// and all) ask for.
func APIOf(method, path string) API {
	if method != "POST" {
		return Other
	}
	path, _, _ = strings.Cut(path, "?")
	switch strings.TrimPrefix(path, "/v1") {
	case "/chat/completions":
		return Chat
	case "/completions":
		return Completions
	case "/embeddings":
		return Embeddings
	case "/responses":
		return Responses
	case "/messages":
		return Messages
	case "/messages/count_tokens":
		return CountTokens
	default:
		return Other
	}
}

// IsAnthropic reports whether errors on a path take Anthropic's form.
func IsAnthropic(path string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(path, "/v1"), "/messages")
	return ok && (rest == "" || rest[0] == '/' || rest[0] == '?')
}

// anthropic reports whether a body has Anthropic's fields.
func (a API) anthropic() bool { return a == Messages || a == CountTokens }

// Generates reports whether an answer holds tokens that are generated.
func (a API) Generates() bool { return a != Embeddings && a != CountTokens }

// Caches reports whether a request leaves something in the engine's cache that a later
// one can use.
func (a API) Caches() bool { return a != Embeddings && a != CountTokens }
