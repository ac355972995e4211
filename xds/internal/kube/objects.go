package kube

import (
	"bytes"
	"cmp"
	"encoding/json"
	"path/filepath"
	"slices"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/kubeapi"
)

// object is a Model, Policy or Endpoints as the API server has it.
type object struct {
	desired.Ref
	// UID distinguishes objects that had the same name.
	UID        string
	Generation int64
	Created    time.Time
	// Spec is its content in JSON.
	Spec json.RawMessage
	// InForce is the content that holds in its place by its status; nil: none does.
	InForce *content `json:",omitempty"`
}

// content is the spec of an object in one generation.
type content struct {
	Generation int64
	Spec       json.RawMessage
}

// good is the last content of an object that broke no rule.
type good struct {
	desired.Ref
	UID string
	content
}

// verdict is what became of an object.
type verdict struct {
	object
	// reason is that of its condition Accepted, faults what is wrong with it; none: all is
	// in force as it is.
	reason string
	faults []config.Fault
	// holds is what is in force of it; nil: nothing is.
	holds *content
}

// refused reports whether its present content is not in force at all.
func (v verdict) refused() bool { return v.holds == nil || v.holds.Generation != v.Generation }

// rules is what contents are judged by.
type rules struct {
	// dir is where relative paths start.
	dir string
	// key returns the key of cookies for a policy.
	key func(config.PolicySpec) ([]byte, error)
	// admit returns what keeps a State from being in force.
	admit desired.Admit
}

// judgement is what follows from the objects that there are.
type judgement struct {
	published desired.Published
	verdicts  []verdict
	// goods are the last good contents, by object.
	goods map[desired.Ref]good
}

// judge takes each object by itself, the oldest first: one with a fault keeps no other
// from being in force. It depends on the objects, and on the last good contents of those
// that have a fault; before is the judgement before this one.
func (r rules) judge(objects []object, before judgement) judgement {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b object) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	t := trial{rules: r, refusals: make(map[desired.Ref]config.Fault), dropped: make(map[desired.Ref]bool), goods: before.goods}
	for {
		j, faults := t.once(objects, before.published.State)
		if len(faults) == 0 {
			return j
		}
		if !t.refuse(objects, faults) {
			j.published.State = before.published.State // nobody is to blame: nothing changes
			j.published.Faults = append(j.published.Faults, faults...)
			return j
		}
	}
}

// trial is one judgement on its way.
type trial struct {
	rules
	goods map[desired.Ref]good
	// refusals are of contents that break rules of what is made of them; dropped are
	// objects whose last good content does so, too.
	refusals map[desired.Ref]config.Fault
	dropped  map[desired.Ref]bool
}

// goodOf returns the last good content of an object; nil: it had none.
func (t trial) goodOf(o object) *content {
	g, ok := t.goods[o.Ref]
	switch {
	case ok && g.UID == o.UID && (o.InForce == nil || g.Generation >= o.InForce.Generation):
		return &g.content
	case o.InForce != nil:
		return o.InForce
	}
	return nil
}

// once judges the objects, but for those that are known to be refused. It returns what
// keeps the outcome from being in force.
func (t trial) once(objects []object, before *desired.State) (judgement, []config.Fault) {
	var inputs []config.Object
	var of []int // index of the object of each input
	for i, o := range objects {
		in := config.Object{Kind: o.Kind, Name: o.Name, Spec: o.Spec}
		if g := t.goodOf(o); g != nil {
			in.Good = g.Spec
		}
		if _, refused := t.refusals[o.Ref]; refused {
			if in.Spec = in.Good; t.dropped[o.Ref] || in.Spec == nil {
				continue
			}
		}
		inputs, of = append(inputs, in), append(of, i)
	}
	file, outcomes := config.Merge(t.dir, inputs)
	for i := range file.Models {
		t.installed(&file.Models[i])
	}
	j := judgement{verdicts: make([]verdict, len(objects)), goods: make(map[desired.Ref]good)}
	for i, o := range objects {
		j.verdicts[i] = verdict{object: o, reason: kubeapi.ReasonValid}
		if f, refused := t.refusals[o.Ref]; refused {
			j.verdicts[i].reason, j.verdicts[i].faults = kubeapi.ReasonInvalid, []config.Fault{f}
		}
	}
	for k, out := range outcomes {
		t.note(&j, of[k], out)
	}
	t.cookieKey(&j, file, before)
	for i := range j.verdicts {
		v := &j.verdicts[i]
		if g := t.goodOf(v.object); v.holds != nil && (len(v.faults) == 0 || !v.refused()) {
			j.goods[v.Ref] = good{v.Ref, v.UID, *v.holds}
		} else if g != nil {
			j.goods[v.Ref] = good{v.Ref, v.UID, *g}
		}
		j.published.Faults = append(j.published.Faults, v.faults...)
	}
	j.published.Observed = observed(j.verdicts)
	if t.admit == nil || j.published.State == before {
		return j, nil
	}
	return j, t.admit(j.published.State)
}

// installed names the weights of the model that an installation brings along.
func (r rules) installed(m *config.Model) {
	s := &m.Spec
	if m.Metadata.Name == config.DefaultModel && s.Weights == "" && s.Backend.Kind == config.LlamaCpp && !s.Implied {
		s.Weights = filepath.Join(r.dir, config.DefaultModel+".gguf")
	}
}

// note takes in the outcome of one object.
func (t trial) note(j *judgement, i int, out config.Outcome) {
	v := &j.verdicts[i]
	switch {
	case len(out.Faults) > 0:
		v.reason = kubeapi.ReasonInvalid
	case len(out.Conflicts) > 0 && v.Kind == config.KindPolicy:
		v.reason = kubeapi.ReasonMissing
	case len(out.Conflicts) > 0:
		v.reason = kubeapi.ReasonConflict
	}
	v.faults = append(append(v.faults, out.Faults...), out.Conflicts...)
	_, refused := t.refusals[v.Ref]
	switch {
	case len(out.Faults) == 0 && !refused:
		v.holds = &content{v.Generation, v.Spec}
	case out.Spec != nil || refused && len(out.Faults) == 0:
		v.holds = t.goodOf(v.object)
	}
}

// cookieKey finds the key that the policy names, or that of the installation, and with
// it the State.
func (t trial) cookieKey(j *judgement, file config.File, before *desired.State) {
	key, err := t.key(file.Policy.Spec)
	for i := range j.verdicts {
		if v := &j.verdicts[i]; err != nil && v.Kind == config.KindPolicy && v.holds != nil {
			v.reason = kubeapi.ReasonInvalid
			v.faults = append(v.faults, config.Fault{
				Kind: v.Kind, Name: v.Name, Path: "spec.sessions.cookie.keyFile", Text: err.Error(),
			})
		}
	}
	generation := func(kind, name string) int64 {
		for _, v := range j.verdicts {
			if v.Kind == kind && v.Name == name && v.holds != nil {
				return v.holds.Generation
			}
		}
		return 0
	}
	j.published.State = desired.Known(before, file, generation, key)
}

// refuse takes objects that are to blame for faults out of force: their present content
// first, then their last good one. It reports whether there was one.
func (t trial) refuse(objects []object, faults []config.Fault) (progress bool) {
	for _, f := range faults {
		ref := desired.Ref{Kind: f.Kind, Name: f.Name}
		i := slices.IndexFunc(objects, func(o object) bool { return o.Ref == ref })
		if i < 0 || t.dropped[ref] {
			continue
		}
		if _, refused := t.refusals[ref]; refused {
			t.dropped[ref] = true
		} else {
			t.refusals[ref] = f
			g := t.goodOf(objects[i])
			t.dropped[ref] = g == nil || bytes.Equal(g.Spec, objects[i].Spec)
		}
		progress = true
	}
	return progress
}

// observed returns the generations of the objects that have faults.
func observed(all []verdict) map[desired.Ref]int64 {
	m := make(map[desired.Ref]int64)
	for _, v := range all {
		if len(v.faults) > 0 {
			m[v.Ref] = v.Generation
		}
	}
	return m
}

// keyOf returns what gives a policy its key: the file that it names, or else the key of
// the installation.
func keyOf(installation []byte) func(config.PolicySpec) ([]byte, error) {
	return func(p config.PolicySpec) ([]byte, error) {
		c := p.Sessions.Cookie
		if c.Name == "" || c.KeyFile == "" {
			return installation, nil
		}
		if key, err := c.Key(); err == nil {
			return key, nil
		} else {
			return installation, err
		}
	}
}
