package config

import (
	"slices"
	"strconv"
)

// Rewrite lets other models serve requests for a name: one that is stable while
// models change behind it, or a share of a model's requests to try another.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="to",missing=true,holds="has(self.to) && self.to.size() > 0",shows="missing",words="must be a list of the models that serve {strings.quote(self.model)}"
type Rewrite struct {
	// Model is the name that clients use; it need not be that of a model. No two
	// rewrites have the same.
	// +kubebuilder:validation:Required
	// +millrace:form:name=servedName
	Model string `json:"model"`
	// To are the models that serve them, 1 to 16. A conversation stays with one of
	// them. They are not rewritten again.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +millrace:once:same="has(o.model) && has(e.model) && o.model == e.model",field=model
	To []RewriteTarget `json:"to"`
}

// RewriteTarget is a model with its share of the conversations.
//
// +millrace:rule:at="model",missing=true,holds="has(self.model)",words=`""; must be 1 to 96 printable characters without spaces`
type RewriteTarget struct {
	// Model is its id.
	// +millrace:form:name=servedName
	Model string `json:"model"`
	// Weight is its share beside the other weights, 1 to 1000000. Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="1",most="1000000"
	Weight int `json:"weight"`
}

// setDefaults makes all shares equal.
func (t *RewriteTarget) setDefaults() { t.Weight = 1 }

// Bounds of rewrites.
const (
	maxRewrites = 512
	maxTargets  = 16
	maxWeight   = 1_000_000
)

// validateRewrites checks what can be seen without knowing the models.
func validateRewrites(path string, all []Rewrite, r *rules) {
	if n := len(all); n > maxRewrites {
		r.between(path, n, 0, maxRewrites)
		return
	}
	seen := make(map[string]bool, len(all))
	for i, w := range all {
		at := path + "[" + strconv.Itoa(i) + "]"
		r.matches(at+".model", w.Model, servedName)
		if seen[w.Model] {
			r.broken(at+".model", "%q; must be in the list once", w.Model)
		}
		seen[w.Model] = true
		if n := len(w.To); n == 0 {
			r.broken(at+".to", "missing; must be a list of the models that serve %q", w.Model)
		} else {
			r.between(at+".to", n, 1, maxTargets)
		}
		for k, t := range w.To {
			to := at + ".to[" + strconv.Itoa(k) + "]"
			r.matches(to+".model", t.Model, servedName)
			if slices.ContainsFunc(w.To[:k], func(o RewriteTarget) bool { return o.Model == t.Model }) {
				r.broken(to+".model", "%q; must be in the list once", t.Model)
			}
			r.between(to+".weight", t.Weight, 1, maxWeight)
		}
	}
}

// validateTargets checks that the models are there that requests are to go to.
func validateTargets(path string, all []Rewrite, known func(model string) bool, r *rules) {
	for i, w := range all {
		for k, t := range w.To {
			if !known(t.Model) {
				at := path + "[" + strconv.Itoa(i) + "].to[" + strconv.Itoa(k) + "].model"
				r.broken(at, "%q; must be the id of a model that is served", t.Model)
			}
		}
	}
}

// checkTargets adds what is wrong with the rewrites of the file's policy, once all
// models are known. Where models have faults that is not known.
func (r *reader) checkTargets() {
	if r.policyAt == nil || len(r.faults) > 0 {
		return
	}
	r.faults = append(r.faults, r.targets(r.complete())...)
}

// targets returns where the file's policy sends requests to models that are not in f.
func (r *reader) targets(f File) []Fault {
	var broken rules
	validateTargets("spec.rewrites", r.file.Policy.Spec.Rewrites, f.known, &broken)
	validateDegrade("spec.flow.degrade", r.file.Policy.Spec.Flow.Degrade, f.known, &broken)
	return r.policyAt.located(broken)
}
