package token

import (
	"bytes"
	"encoding/json"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// given is whether a field has a value.
func given(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) > 0 && string(raw) != "null"
}

// planDocuments gives the template the request's documents.
func (m *Model) planDocuments(p *plan, f *fields) error {
	if !given(f.Documents) || !m.template.mentions("documents") {
		return nil
	}
	if m.template.llama || !m.template.vllm {
		p.doubts(ByFields)
		return nil
	}
	var texts []map[string]string
	if json.Unmarshal(f.Documents, &texts) != nil {
		return errRefused
	}
	if len(f.Documents) > mostKwargs {
		return errHeavy
	}
	documents, err := jinja.FromJSON(f.Documents)
	if err == nil {
		p.set("documents", documents)
	}
	return err
}

// set gives the template a variable.
func (p *plan) set(name string, v any) {
	if p.extra == nil {
		p.extra = jinja.NewDict(2)
	}
	p.extra.Set(name, v)
	p.slow = true
}

// planExtra finds the variables that the request itself gives the template.
func (m *Model) planExtra(p *plan, f *fields) error {
	if len(f.Kwargs) == 0 && f.Effort == "" {
		return nil
	}
	all := jinja.NewDict(2)
	if len(f.Kwargs) > mostKwargs {
		return errHeavy
	}
	if given(f.Kwargs) {
		values, err := jinja.FromJSON(bytes.TrimSpace(f.Kwargs))
		if err != nil {
			return err
		}
		var ok bool
		if all, ok = values.(*jinja.Dict); !ok {
			return errRefused
		}
	}
	m.template.effort(p, all, f.Effort)
	for name, v := range all.All() {
		switch {
		case !m.template.mentions(name):
		case reserved[name] && !m.template.llama:
			p.doubts(ByFields)
		case m.template.vllm && m.template.args != nil && (v == nil || v == any("auto")):
			// such a value counts as none where the engine has defaults: vllm/renderers/params.py
		default:
			p.set(name, v)
		}
	}
	return nil
}

// reserved are variables that engines give templates themselves: what becomes of a request's
// own is for each to decide.
var reserved = map[string]bool{
	"messages": true, "tools": true, "documents": true, "add_generation_prompt": true, "continue_final_message": true,
	"chat_template": true, "tokenize": true, "bos_token": true, "eos_token": true,
}

// effort adds what an engine makes of a request's reasoning_effort to its template's variables.
func (t *template) effort(p *plan, all *jinja.Dict, effort string) {
	switch _, thinking := all.Get("enable_thinking"); {
	case effort == "":
	case t.llama && effort == "none":
		all.Set("enable_thinking", false)
	case t.llama:
		all.Set("reasoning_effort", effort)
	case t.vllm && t.habits.effort != absent:
		all.Set("reasoning_effort", effort)
		if t.habits.effort == yes && !thinking {
			all.Set("enable_thinking", effort != "none")
		}
	case t.mentions("reasoning_effort") || t.mentions("thinking"):
		all.Set("reasoning_effort", effort)
		p.doubts(ByEngine)
	}
}
