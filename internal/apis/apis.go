// Package apis is the table of the API's operations: those of OpenAI, of Anthropic, and
// what engines have beside them. An operation is one row.
//
// extproc decodes, counts and routes requests by it, xds makes Envoy's routes of it,
// engine answers it. Its one rule: whoever must know more of an operation adds a column
// here, never a list of operations elsewhere.
package apis

import (
	"net/url"
	"slices"
	"strings"
)

// API is an operation; all of them are POST.
type API uint8

// The operations.
const (
	// Other is any operation that is not in the table: its requests pass through.
	Other API = iota
	// Chat is OpenAI's chat/completions.
	Chat
	// Completions is OpenAI's older completions.
	Completions
	// Embeddings is OpenAI's embeddings.
	Embeddings
	// Responses is OpenAI's responses.
	Responses
	// InputTokens is OpenAI's responses/input_tokens: nothing is generated.
	InputTokens
	// Messages is Anthropic's messages.
	Messages
	// CountTokens is Anthropic's messages/count_tokens: nothing is generated.
	CountTokens
	// Rerank orders documents by a query, as Jina's and Cohere's APIs have it.
	Rerank
	// Score compares texts in pairs; vLLM and SGLang have it.
	Score
	// Tokenize and Detokenize make tokens of a text and a text of tokens.
	Tokenize
	Detokenize
	// Transcriptions and Translations make text of an uploaded sound.
	Transcriptions
	Translations
	// Len is the number of operations, Other included.
	Len = iota
)

// Reader is how a body is decoded.
type Reader uint8

const (
	// JSON bodies are one object.
	JSON Reader = iota
	// Form bodies are multipart/form-data. Only their field "model" is decoded.
	Form
	// Fields bodies are application/x-www-form-urlencoded. Only their field "model" is
	// decoded.
	Fields
)

// ReaderOf returns how a body of a content type is decoded where its operation doesn't
// say: as JSON if nothing else.
func ReaderOf(contentType string) Reader {
	for _, r := range []Reader{Form, Fields} {
		if r.Accepts(contentType) {
			return r
		}
	}
	return JSON
}

// ContentType is the type of such bodies.
func (r Reader) ContentType() string {
	return [...]string{JSON: "application/json", Form: "multipart/form-data", Fields: "application/x-www-form-urlencoded"}[r]
}

// Accepts reports whether a content type is that of such bodies. A client that names
// none is taken to send JSON.
func (r Reader) Accepts(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	kind = strings.TrimSpace(kind)
	if strings.EqualFold(kind, r.ContentType()) {
		return true
	}
	return r == JSON && (kind == "" || len(kind) > 5 && strings.EqualFold(kind[len(kind)-5:], "+json"))
}

// Dialect is whose fields and errors an operation has.
type Dialect uint8

const (
	// OpenAI is the dialect of all that is not Anthropic's.
	OpenAI Dialect = iota
	// Anthropic is that of its messages.
	Anthropic
)

// Counting is what of a request are the tokens of its prompt.
type Counting uint8

const (
	// Size estimates tokens by the size of the body.
	Size Counting = iota
	// Conversation counts messages, as the model's template renders them.
	Conversation
	// Texts counts texts one by one, as they are.
	Texts
	// Nothing is for requests that no model works on.
	Nothing
)

// Routing is by what an endpoint is chosen.
type Routing uint8

const (
	// ByPrefix sends a request to where its prompt or its session is cached, if that
	// pays.
	ByPrefix Routing = iota
	// ByLoad is for requests that leave nothing in a cache which a later one could use.
	ByLoad
)

// Row is one operation.
type Row struct {
	// Name is what metrics and spans call it.
	Name string
	// GenAI is what OpenTelemetry's conventions for generative AI call it (gen_ai.operation.name);
	// empty: nothing.
	GenAI string
	// Path is where the engines have it. Aliases are other paths of it.
	Path    string
	Aliases []string
	Reader  Reader
	Dialect Dialect
	Counted Counting
	Routed  Routing
	// Items is whether its conversation is instructions and items of input, as responses
	// have it.
	Items bool
	// Generates is whether its answer has tokens that the model makes one by one.
	Generates bool
	// AnyModel is whether a request need not name its model: the default one serves it.
	AnyModel bool
	// Texts are the fields whose texts are counted, beside prompt and input.
	Texts []string
	// Input is the field that must be there, Limits are those that bound the answer, the
	// first one given counts. For engine; empty: it does not care.
	Input  string
	Limits []string
}

var table = [Len]Row{
	Other: {Name: "other", Generates: true},
	Chat: {
		Name: "chat", GenAI: "chat", Path: "/v1/chat/completions", Aliases: []string{"/chat/completions"}, Counted: Conversation, Generates: true,
		Input: "messages", Limits: []string{"max_completion_tokens", "max_tokens"},
	},
	Completions: {
		Name: "completions", GenAI: "text_completion", Path: "/v1/completions", Aliases: []string{"/completions"}, Counted: Texts, Generates: true,
		Input: "prompt", Limits: []string{"max_tokens"},
	},
	Embeddings: {
		Name: "embeddings", GenAI: "embeddings", Path: "/v1/embeddings", Aliases: []string{"/embeddings"}, Counted: Texts, Routed: ByLoad, Input: "input",
	},
	Responses: {
		Name: "responses", GenAI: "chat", Path: "/v1/responses", Aliases: []string{"/responses"}, Counted: Conversation, Items: true, Generates: true,
		Input: "input", Limits: []string{"max_output_tokens"},
	},
	InputTokens: {
		Name: "input_tokens", Path: "/v1/responses/input_tokens", Aliases: []string{"/responses/input_tokens"},
		Counted: Conversation, Items: true, Routed: ByLoad, Input: "input",
	},
	Messages: {
		Name: "messages", GenAI: "chat", Path: "/v1/messages", Aliases: []string{"/messages"}, Dialect: Anthropic, Counted: Conversation, Generates: true,
		Input: "messages", Limits: []string{"max_tokens"},
	},
	CountTokens: {
		Name: "count_tokens", Path: "/v1/messages/count_tokens", Aliases: []string{"/messages/count_tokens"}, Dialect: Anthropic,
		Counted: Conversation, Routed: ByLoad, Input: "messages",
	},
	Rerank: {
		Name: "rerank", Path: "/v1/rerank", Aliases: []string{"/rerank", "/v2/rerank", "/reranking", "/v1/reranking"},
		Counted: Texts, Texts: []string{"query", "documents", "texts"}, Routed: ByLoad, Input: "query",
	},
	Score: {
		Name: "score", Path: "/v1/score", Aliases: []string{"/score"},
		Counted: Texts, Texts: []string{"text_1", "text_2", "queries", "documents", "items", "data_1", "data_2"}, Routed: ByLoad,
	},
	Tokenize:   {Name: "tokenize", Path: "/tokenize", Aliases: []string{"/v1/tokenize"}, Counted: Nothing, Routed: ByLoad, AnyModel: true},
	Detokenize: {Name: "detokenize", Path: "/detokenize", Aliases: []string{"/v1/detokenize"}, Counted: Nothing, Routed: ByLoad, AnyModel: true},
	Transcriptions: {
		Name: "transcriptions", Path: "/v1/audio/transcriptions", Aliases: []string{"/audio/transcriptions"}, Reader: Form, Routed: ByLoad, Generates: true,
	},
	Translations: {
		Name: "translations", Path: "/v1/audio/translations", Aliases: []string{"/audio/translations"}, Reader: Form, Routed: ByLoad, Generates: true,
	},
}

var byPath = func() map[string]API {
	m := map[string]API{}
	for a := Chat; a < Len; a++ {
		m[table[a].Path] = a
		for _, alias := range table[a].Aliases {
			m[alias] = a
		}
	}
	return m
}()

// Row returns the operation's row, which must not be changed.
func (a API) Row() *Row { return &table[a%Len] }

// Outside returns the operation's paths that do not begin with a prefix.
func (r *Row) Outside(prefix string) (paths []string) {
	for _, p := range append([]string{r.Path}, r.Aliases...) {
		if !strings.HasPrefix(p, prefix) {
			paths = append(paths, p)
		}
	}
	return paths
}

// OnlyCounts reports whether the operation's answer is how many tokens its prompt has.
func (r *Row) OnlyCounts() bool { return r.Counted == Conversation && !r.Generates }

// String returns the operation's name.
func (a API) String() string { return a.Row().Name }

// Of returns the operation that method and path, query and all, ask for. It is known by
// the path's end: a gateway may have more in front of it, which it takes away later.
func Of(method, path string) API {
	if method != "POST" {
		return Other
	}
	path, _, _ = strings.Cut(path, "?")
	return at(strings.TrimRight(path, "/"))
}

// at returns the operation at a path, whatever is in front of it.
func at(path string) API {
	if a, ok := byPath[path]; ok {
		return a
	}
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if a, ok := byPath[path[i:]]; ok && !within(path[:i], path[i:]) {
			return a
		}
	}
	return Other
}

// collections have things of their own below each of theirs, which are called like
// operations: /v1/threads/7/messages.
var collections = []string{"threads", "conversations", "batches", "evals"}

// within reports whether an end of one segment belongs to what is in front of it.
func within(front, end string) bool {
	if strings.IndexByte(end[1:], '/') >= 0 {
		return false
	}
	collection := front[:max(0, strings.LastIndexByte(front, '/'))]
	return slices.Contains(collections, collection[strings.LastIndexByte(collection, '/')+1:])
}

// DialectOf returns the dialect of errors on a path: that of an operation's, or of what
// lies below one.
func DialectOf(path string) Dialect {
	path, _, _ = strings.Cut(path, "?")
	for path = strings.TrimRight(path, "/"); path != ""; {
		if a := at(path); a != Other {
			return table[a].Dialect
		}
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
	return OpenAI
}

// stored are the collections of what engines store.
var stored = []string{"responses", "conversations"}

// Stored reports whether a path, query and all, is that of something that engines store, or of
// a collection where it can be made, and no operation of a model.
func Stored(path string) bool {
	path, _, _ = strings.Cut(path, "?")
	path = strings.TrimRight(path, "/")
	if at(path) != Other {
		return false
	}
	return slices.ContainsFunc(stored, func(c string) bool { return strings.HasSuffix(path, "/"+c) || strings.Contains(path, "/"+c+"/") })
}

// ModelIn returns the model that a path names, query and all: by ?model=, or as Azure's
// paths do, /openai/deployments/MODEL/chat/completions. Empty: it names none.
func ModelIn(path string) string {
	path, query, _ := strings.Cut(path, "?")
	if model := FieldIn(query, "model"); model != "" {
		return model
	}
	_, rest, ok := strings.Cut(path, "/deployments/")
	if name, _, more := strings.Cut(rest, "/"); ok && more {
		if name, err := url.PathUnescape(name); err == nil {
			return name
		}
	}
	return ""
}

// FieldIn returns the first value of a field of a query, or of an urlencoded form.
// Empty: it has none, or one that is not well encoded.
func FieldIn(form, field string) string {
	for pair := range strings.SplitSeq(form, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if key != field {
			if name, err := url.QueryUnescape(key); err != nil || name != field {
				continue
			}
		}
		if value, err := url.QueryUnescape(value); err == nil {
			return value
		}
	}
	return ""
}

// Listed reports whether a GET of a path asks for the models there are, and if for one of
// them, for which.
func Listed(path string) (list bool, model string) {
	path, _, _ = strings.Cut(path, "?")
	path = strings.TrimRight(path, "/")
	if strings.HasSuffix(path, "/v1/models") || path == "/models" {
		return true, ""
	}
	_, model, ok := strings.Cut(path, "/v1/models/")
	if !ok {
		model, ok = strings.CutPrefix(path, "/models/")
	}
	if name, err := url.PathUnescape(model); err == nil {
		model = name
	}
	return ok && model != "", model
}
