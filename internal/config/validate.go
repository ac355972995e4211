package config

import (
	"encoding"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"millrace.dev/millrace/internal/backends"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/wire"
)

// rules collects the broken rules of one object.
type rules []Fault

func (r *rules) broken(path, format string, args ...any) {
	*r = append(*r, Fault{Path: path, Text: secret.Hide(fmt.Sprintf(format, args...))})
}

func (r *rules) between(path string, value, least, most int) {
	switch {
	case value < least:
		r.broken(path, "%d; must be ≥ %d", value, least)
	case value > most:
		r.broken(path, "%d; must be ≤ %d", value, most)
	}
}

func (r *rules) holds(path string, value, least, most Bytes) {
	switch {
	case value < least:
		r.broken(path, "%s; must be ≥ %s", text(value), text(least))
	case value > most:
		r.broken(path, "%s; must be ≤ %s", text(value), text(most))
	}
}

func (r *rules) lasts(path string, value Duration, least, most time.Duration) {
	switch {
	case value.Duration < least:
		r.broken(path, "%s; must be ≥ %s", text(value), text(Duration{least}))
	case value.Duration > most:
		r.broken(path, "%s; must be ≤ %s", text(value), text(Duration{most}))
	}
}

// matches checks a text. It is shown to its 80th character: who gave it knows the rest.
func (r *rules) matches(path, value string, f form) {
	if !f.fits(value) {
		r.broken(path, "%.80q; must be %s", value, f.words)
	}
}

// eachOnce checks the texts of a list: the form of each, and that none is there twice.
func (r *rules) eachOnce(path string, values []string, f form) {
	for i, v := range values {
		at := path + "[" + strconv.Itoa(i) + "]"
		r.matches(at, v, f)
		if slices.Contains(values[:i], v) {
			r.broken(at, "%q; must be in the list once", v)
		}
	}
}

// oneOf checks a text that is one of a few.
func (r *rules) oneOf(path, value string, values ...string) {
	if n := len(values) - 1; !slices.Contains(values, value) {
		r.broken(path, "%.80q; must be %s or %s", value, strings.Join(values[:n], ", "), values[n])
	}
}

// short bounds a text that may be anything, in characters.
func (r *rules) short(path, value string, most int) {
	if n := utf8.RuneCountInString(value); n > most {
		r.broken(path, "%d characters; must be ≤ %d", n, most)
	}
}

// templateArgs checks the JSON of arguments for a chat template.
func (r *rules) templateArgs(path, value string) {
	if value == "" {
		return
	}
	had := len(*r)
	if r.matches(path, value, templateArgs); len(*r) > had {
		return
	}
	var args map[string]any
	if err := json.Unmarshal([]byte(value), &args); err != nil {
		r.broken(path, "%.80q; must be %s: %v", value, templateArgsWords, err)
	}
}

func text(v encoding.TextMarshaler) string {
	b, _ := v.MarshalText() // never fails
	return string(b)
}

// validate returns the rules that the model breaks, by path.
func (m Model) validate() []Fault {
	var r rules
	s := m.Spec
	r.matches("metadata.name", m.Metadata.Name, modelName)
	m.validateBackend(&r)
	r.short("spec.weights", s.Weights, maxPath)
	r.short("spec.tokenizer", s.Tokenizer, maxPath)
	r.templateArgs("spec.templateArgs", s.TemplateArgs)
	r.between("spec.replicas", s.Replicas, 0, 1024)
	r.oneOf("spec.load", s.Load, LoadAlways, LoadOnDemand)
	if s.Load == LoadOnDemand && s.Backend.Kind == OpenAI {
		r.broken("spec.load", "%q; must be always: nothing is loaded here, the server is external", s.Load)
	}
	r.lasts("spec.keepAlive", s.KeepAlive, 0, 720*time.Hour)
	r.lasts("spec.goal.firstToken", s.Goal.FirstToken, 0, 10*time.Minute)
	r.lasts("spec.goal.token", s.Goal.Token, 0, 10*time.Minute)
	if most := s.Most(); most >= 1 && len(s.Layout) > most {
		r.broken("spec.layout", "%d entries; must be ≤ %d, the number of replicas", len(s.Layout), most)
	}
	if s.Scaling.validate("spec.scaling", &r); s.Scaled() && s.Load == LoadOnDemand {
		r.broken("spec.load", "%q; must be always where scaling.mode is auto: who is loaded on demand gets its place by turns", s.Load)
	}
	r.between("spec.layout", len(s.Layout), 0, maxLayout)
	for i, l := range s.Layout {
		l.validate("spec.layout["+strconv.Itoa(i)+"]", &r)
	}
	return r
}

// backendPaths are the paths of what not every kind of backend has.
var backendPaths = map[backends.Field]string{
	backends.Kind: "spec.backend.kind", backends.Weights: "spec.weights", backends.ContextTokens: "spec.backend.contextTokens",
	backends.TensorParallel: "spec.backend.tensorParallel", backends.PipelineParallel: "spec.backend.pipelineParallel",
	backends.DataParallel: "spec.backend.dataParallel", backends.Args: "spec.backend.args",
	backends.URL: "spec.backend.url", backends.ServedModel: "spec.backend.model",
}

// validateBackend returns what is impossible for the kind of the model's backend, and
// what is for every kind.
func (m Model) validateBackend(r *rules) {
	s, b := m.Spec, m.Spec.Backend
	asked := backends.Settings{
		Kind: b.Kind, Weights: s.Weights, ContextTokens: b.ContextTokens,
		TensorParallel: b.TensorParallel, PipelineParallel: b.PipelineParallel, DataParallel: b.DataParallel,
		Args: b.Args, URL: b.URL, ServedModel: b.Model,
	}
	for _, f := range backends.Check(asked) {
		at, text := backendPaths[f.Field], f.Text
		switch {
		case f.Field == backends.Weights && b.Kind == LlamaCpp && m.Metadata.Name == DefaultModel:
			continue // set-up fetches them
		case f.Field == backends.Weights && s.Replicas == 0 && !s.Scaled():
			continue // nobody loads them
		case f.Field == backends.Weights && b.Kind == LlamaCpp:
			text += " (only " + DefaultModel + " can do without)"
		case f.Field == backends.Args && len(b.Args) > f.Index && b.Kind == VLLM:
			at += "[" + strconv.Itoa(f.Index) + "]"
		}
		r.broken(at, "%s", text)
	}
	for i, l := range s.Layout {
		asked.Stages = l.Stages
		for _, f := range backends.Check(asked) {
			if f.Field == backends.Stages {
				r.broken("spec.layout["+strconv.Itoa(i)+"].stages", "%s", f.Text)
			}
		}
	}
	r.between("spec.backend.slots", b.Slots, 1, 1024)
	r.between("spec.backend.threads", b.Threads, 1, 1024)
	r.between("spec.backend.queue", b.Queue, 0, 65536)
}

// setDefaults makes an entry that says nothing a replica on one node.
func (l *Layout) setDefaults() { l.Stages = 1 }

func (l Layout) validate(path string, r *rules) {
	r.between(path+".stages", l.Stages, 1, 256)
	if n := len(l.Shares); n > 0 && n != l.Stages {
		r.broken(path+".shares", "%d entries; must be %d, one a stage", n, l.Stages)
	}
	for i, share := range l.Shares {
		if !(share > 0 && share <= 1e6) { // NaN is neither
			r.broken(path+".shares["+strconv.Itoa(i)+"]", "%g; must be > 0 and ≤ 1000000", share)
		}
	}
	if n := len(l.Nodes); n > 0 && n != l.Stages {
		r.broken(path+".nodes", "%d entries; must be %d, one a stage", n, l.Stages)
	}
	r.eachOnce(path+".nodes", l.Nodes, nodeName)
}

// validate returns the rules that the policy breaks, by path.
func (p Policy) validate() []Fault {
	var r rules
	if p.Metadata.Name != "default" {
		r.broken("metadata.name", "%q; must be %q", p.Metadata.Name, "default")
	}
	p.Spec.Sessions.validate(&r)
	p.Spec.Retries.validate(&r)
	p.Spec.Priorities.validate(&r)
	p.Spec.Limits.validate(&r)
	validateRewrites("spec.rewrites", p.Spec.Rewrites, &r)
	p.Spec.Flow.validate("spec.flow", &r)
	r.between("spec.pathPrefixes", len(p.Spec.PathPrefixes), 0, maxPathPrefixes)
	r.eachOnce("spec.pathPrefixes", p.Spec.PathPrefixes, pathPrefix)
	p.Spec.CORS.validate("spec.cors", &r)
	p.Spec.Istio.validate("spec.istio", &r)
	return r
}

func (p Priorities) validate(r *rules) {
	r.matches("spec.priorities.header", p.Header, headerName)
	r.oneOf("spec.priorities.default", p.Default, wire.Critical, wire.Standard, wire.Sheddable)
}

func (s Sessions) validate(r *rules) {
	r.matches("spec.sessions.header", s.Header, headerName)
	r.matches("spec.sessions.cookie.name", s.Cookie.Name, cookieName)
	r.short("spec.sessions.cookie.keyFile", s.Cookie.KeyFile, maxPath)
	r.lasts("spec.sessions.idle", s.Idle, time.Second, 720*time.Hour)
	r.between("spec.sessions.max", s.Max, 1, 10_000_000)
}

func (t Retries) validate(r *rules) {
	r.between("spec.retries.critical", t.Critical, 1, 16)
	r.between("spec.retries.standard", t.Standard, 1, 16)
	r.between("spec.retries.sheddable", t.Sheddable, 1, 16)
	r.lasts("spec.retries.maxPerTry", t.MaxPerTry, 0, 24*time.Hour)
	r.lasts("spec.retries.hedgeAfter", t.HedgeAfter, 0, time.Hour)
	r.lasts("spec.retries.hedgeOthersAfter", t.HedgeOthersAfter, 0, time.Hour)
}

func (l Limits) validate(r *rules) {
	r.holds("spec.limits.maxBodyBytes", l.MaxBodyBytes, 1<<10, 1<<30)
	r.holds("spec.limits.maxBytesInFlight", l.MaxBytesInFlight, 1<<20, 64<<30)
	r.lasts("spec.limits.requestTimeout", l.RequestTimeout, time.Second, 24*time.Hour)
}
