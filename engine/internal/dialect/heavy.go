package dialect

import (
	"encoding/json"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// Bounds are what a request may have a server do beside its prompt and its tokens: servers work on
// all of their requests in one thread, so that a schema of a thousand alternatives, or a hundred
// thousand samplers, keep everybody waiting for minutes, also when their client has left.
type Bounds struct {
	// Choices are the alternatives of a form: values of enums, properties that may be left
	// out, members of anyOf and the like.
	Choices int
	// Answers are how many answers there are to a list of prompts.
	Answers int
}

// What no application needs more of, whatever the server.
const (
	mostLogprobs   = 20       // as the API has it
	mostListed     = 1024     // values in a field that is neither prompt nor form: logit_bias, stop, samplers
	mostProperties = 5000     // of a form, as the API has it
	mostNested     = 100      // levels of JSON in a form; the API has ten of objects
	mostPattern    = 16 << 10 // bytes of a grammar or a regular expression
)

// The fields that are large where prompts or forms are.
var (
	contents = []string{
		"messages", "prompt", "input", "system", "instructions", "documents", "metadata", "chat_template_kwargs", "query", "texts", "content", "items", "suffix", "prediction",
	}
	forms = []string{
		"response_format", "text", "output_config", "output_format", "json_schema", "format", "tools", "functions",
		"structured_outputs", "guided_json", "guided_choice", "guided_regex", "guided_grammar", "grammar",
	}
	counts = []string{"top_logprobs", "logprobs", "n_probs", "prompt_logprobs"}
)

// Heavy returns the first by name of the fields that have the server do more than it may.
func (b Bounds) Heavy(r backend.Request) *backend.Error {
	for _, name := range slices.Sorted(maps.Keys(r.Fields)) {
		raw := r.Fields[name]
		switch {
		case slices.Contains(counts, name):
			var n float64
			if json.Unmarshal(raw, &n) == nil && n > mostLogprobs {
				return backend.Refuse(name, "%.40s; must be ≤ %d", raw, mostLogprobs)
			}
		case len(raw) <= mostListed: // too short for all that follows
		case slices.Contains(forms, name):
			if fault := b.form(name, raw); fault != nil {
				return fault
			}
		case raw[0] != '"' && !slices.Contains(contents, name):
			if n := values(raw); n > mostListed {
				return backend.Refuse(name, "it has %d values; must be ≤ %d", n, mostListed)
			}
		}
	}
	return b.answers(r)
}

// answers bounds how many answers a list of prompts has.
func (b Bounds) answers(r backend.Request) *backend.Error {
	var prompts []json.RawMessage
	n := 1
	if r.API != apis.Completions || json.Unmarshal(r.Fields["prompt"], &prompts) != nil || len(prompts) < 2 || prompts[0][0] != '"' && prompts[0][0] != '[' {
		return nil
	}
	_ = json.Unmarshal(r.Fields["n"], &n) // the server refuses what is none
	if all := len(prompts) * max(1, min(n, b.Answers)); all > b.Answers {
		return backend.Refuse("prompt", "%d prompts with %d answers each; must be ≤ %d answers in all: send several requests", len(prompts), n, b.Answers)
	}
	return nil
}

// form bounds what an answer's form, or the parameters of tools, can have a server do.
func (b Bounds) form(name string, raw json.RawMessage) *backend.Error {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return nil // the server refuses it
	}
	var f shape
	f.add(name, v, 0)
	switch {
	case f.nested > mostNested:
		return backend.Refuse(name, "its schema is nested too deeply; must be ≤ %d levels of JSON", mostNested)
	case f.properties > mostProperties:
		return backend.Refuse(name, "its schema has %d properties; must be ≤ %d", f.properties, mostProperties)
	case f.choices > b.Choices:
		return backend.Refuse(name, "its schema has %d alternatives (values of enums, properties that may be left out, members of anyOf); must be ≤ %d: name properties as required, or ask for a text", f.choices, b.Choices)
	case f.pattern > mostPattern:
		return backend.Refuse(name, "a grammar or pattern of %d bytes; must be ≤ %d", f.pattern, mostPattern)
	}
	return nil
}

// shape is how large a form is.
type shape struct{ choices, properties, nested, pattern int }

// add takes in a value under a key, so many levels below the field.
func (f *shape) add(key string, v any, level int) {
	f.nested = max(f.nested, level)
	switch v := v.(type) {
	case string:
		if slices.Contains([]string{"grammar", "regex", "pattern", "guided_grammar", "guided_regex"}, key) {
			f.pattern = max(f.pattern, len(v))
		}
	case []any:
		if slices.Contains([]string{"enum", "anyOf", "oneOf", "choice", "guided_choice"}, key) {
			f.choices += len(v)
		}
		for _, one := range v {
			f.add("", one, level+1)
		}
	case map[string]any:
		if properties, ok := v["properties"].(map[string]any); ok {
			required, _ := v["required"].([]any)
			f.properties += len(properties)
			f.choices += max(0, len(properties)-len(required))
		}
		for name, one := range v {
			f.add(name, one, level+1)
		}
	}
}

// values is how many values a list or an object has, those inside of it included.
func values(raw json.RawMessage) (n int) {
	quoted := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			n++
		}
	}
	return n
}
