package stream

import (
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// inputOf is what a chat with a body is decided by.
func (f *fleet) inputOf(body string, edit ...func(*RequestHead)) *input {
	ev := post(edit...)
	in := &input{table: f.table, head: &ev.Request, api: apis.Of(ev.Request.Method, ev.Request.Path), whole: true, now: epoch}
	if body != "" {
		in.body = []byte(body)
	}
	return in
}

// twoModels adds a model "n", and has "n" serve requests for "auto".
func twoModels(t *pick.Table) {
	t.Models["n"] = &pick.Model{Name: "n", Seed: session.Seed("n"), Endpoints: t.Default.Endpoints, Learned: new(pick.Learned)}
	t.Policy.Objectives = map[string]string{"bulk": wire.Sheddable}
	t.Policy.Rewrites = map[string]*pick.Rewrite{"auto": {Model: "auto", To: []pick.Target{{Model: "n", Weight: 1}}}}
}

// anyModel is a picker that does not know all names.
func anyModel(in *input) {
	in.table.Any = &pick.Model{Name: "any", Endpoints: in.table.Default.Endpoints, Learned: new(pick.Learned)}
}

func renameAll(in *input) {
	in.table.Policy.Rewrite = &pick.Rewrite{To: []pick.Target{{Model: "n", Weight: 1}}}
}

// at is a request for a path, with a body of a type.
func at(path, contentType string) func(*RequestHead) {
	return func(h *RequestHead) { h.Path, h.ContentType = path, contentType }
}

func TestUnderstand(t *testing.T) {
	chat := func(model string) string {
		return `{"model":"` + model + `","messages":[{"role":"user","content":"hi"}]}`
	}
	part := func(in *input) { in.whole = false }
	tests := []struct {
		name string
		body string
		head func(*RequestHead)
		edit func(*input)
		// What is expected.
		model, asked, priority string
		blind, unseen          bool
		forward                string // empty: the body as it came
		err                    string // its code
	}{
		{name: "a chat", body: chat("m"), model: "m"},
		{name: "it names a priority", body: chat("m"), head: func(h *RequestHead) { h.Priority = wire.Critical }, model: "m", priority: wire.Critical},
		{name: "it names one that does not exist", body: chat("m"), head: func(h *RequestHead) { h.Priority = "urgent" }, model: "m"},
		{name: "a model that is served by another", body: chat("auto"), model: "n", asked: "auto", forward: chat("n")},
		{name: "no such model", body: chat("x"), err: "model_not_found"},
		{name: "no such model, where engines know names that we don't", body: chat("x"), edit: anyModel, model: "any"},
		{name: "any name, where a rule is for all", body: chat("x"), edit: renameAll, model: "n", asked: "x", forward: chat("n")},
		{name: "its own rule before that for all", body: chat("auto"), edit: renameAll, model: "n", asked: "auto", forward: chat("n")},
		{name: "the gateway renames its model", body: chat("auto"), head: func(h *RequestHead) { h.Rename = "m" }, model: "m", asked: "auto", forward: chat("m")},
		{name: "the gateway leaves it as it is", body: chat("m"), head: func(h *RequestHead) { h.Rename = "m" }, model: "m"},
		{name: "the gateway names one that only engines know", body: chat("m"), head: func(h *RequestHead) { h.Rename = "y" }, edit: anyModel, model: "any", asked: "m", forward: chat("y")},
		{name: "it names an objective", body: chat("m"), head: func(h *RequestHead) { h.Objective = "bulk" }, model: "m", priority: wire.Sheddable},
		{name: "it names a priority, too", body: chat("m"), head: func(h *RequestHead) { h.Objective, h.Priority = "bulk", wire.Critical }, model: "m", priority: wire.Critical},
		{name: "it names no objective of ours", body: chat("m"), head: func(h *RequestHead) { h.Objective = "other" }, model: "m"},
		{name: "no model", body: `{"messages":[]}`, err: "missing_required_parameter"},
		{name: "not JSON", body: `{`, err: "invalid_json"},
		{name: "cut off behind its model", body: `{"model":"n","messages":[{"role":"user","con`, edit: part, model: "n", blind: true},
		{name: "cut off before its model", body: `{"messages":[{"role":"user","con`, edit: part, model: "m", blind: true},
		{name: "nobody knows the body", edit: part, model: "m", blind: true, unseen: true},
		{name: "an operation that is not known", body: `{"model":"n"}`, head: func(h *RequestHead) { h.Path = "/v1/x" }, model: "n", blind: true},
		{name: "one without a model", body: `[1]`, head: func(h *RequestHead) { h.Path = "/v1/x" }, model: "m", blind: true},
		{name: "one for a model that nobody serves", body: `{"model":"x"}`, head: at("/v1/images/generations", ""), err: "model_not_found"},
		{name: "the same, where engines know names that we don't", body: `{"model":"x"}`, head: at("/v1/images/generations", ""), edit: anyModel, model: "any", blind: true},
		{name: "one that is rewritten", body: `{"model":"auto"}`, head: at("/v1/images/generations", ""), model: "n", asked: "auto", blind: true, forward: `{"model":"n"}`},
		{name: "an upload for one", body: formOf("n", 9), head: at("/v1/images/edits", "multipart/form-data; boundary=b"), model: "n", blind: true},
		{name: "an upload that is rewritten", body: formOf("auto", 9), head: at("/v1/images/edits", "multipart/form-data; boundary=b"), model: "n", asked: "auto", blind: true, forward: formOf("n", 9)},
		{name: "an upload for nobody's", body: formOf("x", 9), head: at("/v1/images/edits", "multipart/form-data; boundary=b"), err: "model_not_found"},
		{name: "an upload for none", body: formOf("", 9), head: at("/v1/files", "multipart/form-data; boundary=b"), model: "m", blind: true},
		{name: "what is no upload though it says so", body: "abc", head: at("/v1/files", "multipart/form-data; boundary=b"), model: "m", blind: true},
		{name: "an upload that is cut off before its model", body: formOf("n", 90)[:80], head: at("/v1/images/edits", "multipart/form-data; boundary=b"), edit: part, model: "m", blind: true},
		{name: "fields of a form", body: "prompt=a+b&model=n&x=1", head: at("/v1/images/generations", "application/x-www-form-urlencoded"), model: "n", blind: true},
		{name: "fields with another's name", body: "mymodel=n", head: at("/v1/x", "application/x-www-form-urlencoded"), model: "m", blind: true},
		{name: "fields for nobody's", body: "model=x", head: at("/v1/x", "application/x-www-form-urlencoded"), err: "model_not_found"},
		{name: "fields that would have to be rewritten", body: "model=auto", head: at("/v1/x", "application/x-www-form-urlencoded"), model: "n", blind: true},
		{name: "the query names it", head: at("/v1/realtime?model=n", ""), model: "n", blind: true},
		{name: "the query names nobody's", head: at("/v1/realtime?model=x", ""), err: "model_not_found"},
		{name: "the body before the query", body: chat("m"), head: at("/v1/chat/completions?model=n", "application/json"), model: "m"},
		{name: "a chat whose query names it", body: `{"messages":[]}`, head: at("/v1/chat/completions?model=n", "application/json"), model: "n"},
		{name: "a chat whose path names it", body: `{"messages":[]}`, head: at("/openai/deployments/n/chat/completions", "application/json"), model: "n"},
		{name: "behind a prefix", body: chat("n"), head: at("/team/v1/chat/completions/", "application/json"), model: "n"},
		{name: "bytes", body: "\x00\x01", head: at("/v1/x", "application/octet-stream"), model: "m", blind: true},
		{name: "encoded, but it is not", body: chat("m"), head: func(h *RequestHead) { h.ContentEncoding = "gzip" }, err: "invalid_content_encoding"},
		{name: "a part of what is encoded", body: "\x1f\x8b\x08", head: func(h *RequestHead) { h.ContentEncoding = "gzip" }, edit: part, model: "m", blind: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1, twoModels)
			if tt.head == nil {
				tt.head = func(*RequestHead) {}
			}
			in := f.inputOf(tt.body, tt.head)
			if tt.edit != nil {
				tt.edit(in)
			}
			u, err := understand(in, new(openai.Request), new(bodies))
			if err != nil || tt.err != "" {
				if err == nil || err.Code != tt.err {
					t.Fatalf("error = %v, want %q", err, tt.err)
				}
				return
			}
			if tt.priority == "" {
				tt.priority = wire.Standard
			}
			got := understood{model: f.table.Named(tt.model), asked: tt.asked, priority: tt.priority, blind: tt.blind, unseen: tt.unseen, size: len(tt.body), forward: u.forward}
			if u.model != got.model || u.asked != got.asked || u.priority != got.priority || u.blind != got.blind || u.unseen != got.unseen || u.size != got.size {
				t.Errorf("understand() = %+v, want %+v", u, got)
			}
			if string(u.forward.body) != tt.forward {
				t.Errorf("forwards %s, want %s", u.forward.body, tt.forward)
			}
		})
	}
}
