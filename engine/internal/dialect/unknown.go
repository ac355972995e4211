package dialect

import (
	"encoding/json"
	"maps"
	"slices"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// Fields are fields by operation, and what to do without each.
type Fields map[apis.API]map[string]string

// unknown are those that no server behind an engine does, and that all of them pass over
// although they change the answer.
var unknown = Fields{
	apis.Chat: {
		"functions":          "this model takes tools: describe the functions there",
		"function_call":      "this model takes tool_choice: name the function there",
		"audio":              "this model makes no sound",
		"web_search_options": "this model can't search the web",
		"moderation":         "nothing is moderated here",
		"store":              "answers are not stored here: keep what comes back",
	},
	apis.Messages: {
		"container":     "nothing runs in a container here",
		"inference_geo": "nobody knows here where that is",
		"mcp_servers":   "no other server is asked from here",
	},
}

// Refused returns the first by name of the fields that a request asks something with.
func (f Fields) Refused(r backend.Request) *backend.Error {
	for _, name := range slices.Sorted(maps.Keys(f[r.API])) {
		if raw := string(r.Fields[name]); backend.Given(r.Fields, name) && raw != "false" && raw != `""` && raw != "{}" {
			return backend.Refuse(name, "%s", f[r.API][name])
		}
	}
	return nil
}

// Unknown returns why no server behind an engine does what a request asks for.
func Unknown(r backend.Request) *backend.Error {
	if fault := unknown.Refused(r); fault != nil {
		return fault
	}
	switch r.API {
	case apis.Chat:
		if v := string(r.Fields["verbosity"]); backend.Given(r.Fields, "verbosity") && v != `"medium"` {
			return backend.Refuse("verbosity", "%.40s; this model has none but \"medium\": ask for it in a message", v)
		}
		var modalities []string
		if backend.Given(r.Fields, "modalities") && (json.Unmarshal(r.Fields["modalities"], &modalities) != nil || slices.ContainsFunc(modalities, func(m string) bool { return m != "text" })) {
			return backend.Refuse("modalities", "%.60s; this model makes text alone: must be [\"text\"]", r.Fields["modalities"])
		}
	case apis.Completions:
		return bestOf(r.Fields)
	}
	return nil
}

// bestOf lets as many completions be made as are returned.
func bestOf(f map[string]json.RawMessage) *backend.Error {
	best, n := 1, 1
	if backend.Given(f, "n") && json.Unmarshal(f["n"], &n) != nil {
		return nil // the server refuses it
	}
	if backend.Given(f, "best_of") && (json.Unmarshal(f["best_of"], &best) != nil || best != 1 && best != n) {
		return backend.Refuse("best_of", "%.40s; as many are made as are returned: must be n, which is %d", f["best_of"], n)
	}
	return nil
}
