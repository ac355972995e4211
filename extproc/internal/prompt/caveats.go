package prompt

import (
	"fmt"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/token"
)

// sort is an engine, and the model as it renders it.
type sort struct {
	engine pick.Engine
	model  *token.Model
}

// Caveats returns why all conversations of the model are estimated, or some.
func (t *tokenizer) Caveats() []pick.Caveat {
	if err := t.model.TemplateError(); err != nil {
		return []pick.Caveat{{Reason: string(token.ByTemplate), Text: err.Error()}}
	}
	var all []pick.Caveat
	add := func(d token.Doubt, format string, args ...any) {
		all = append(all, pick.Caveat{Reason: string(d), Text: fmt.Sprintf(format, args...)})
	}
	if t.fault != nil {
		add(token.ByEngine, "%v; all conversations are estimated", t.fault)
	}
	names := make([]string, len(t.sorts))
	for i, s := range t.sorts {
		names[i] = nameOf(s.engine)
		if harmony, known := s.model.Harmony(); harmony && !known {
			add(token.ByHarmony, "%s makes Harmony's form without the chat template, in a way that is not known; its conversations are estimated", names[i])
		} else if unsure := s.model.Unsure(); len(unsure) > 0 {
			add(token.ByEngine, "how %s prepares conversations is not known; %s are estimated", names[i], strings.Join(unsure, ", "))
		}
	}
	if len(names) > 1 {
		add(token.ByEngine, "%s prepare conversations by different rules; those that they count differently are estimated", strings.Join(names, " and "))
	}
	return append(all, clocks(t.models())...)
}

// models are the model as each kind of its engines renders it.
func (t *tokenizer) models() []*token.Model {
	if len(t.sorts) == 0 {
		return []*token.Model{t.model}
	}
	all := make([]*token.Model, len(t.sorts))
	for i, s := range t.sorts {
		all[i] = s.model
	}
	return all
}

// clocks are the caveats of templates that print what their engine's clock says, one at most.
func clocks(models []*token.Model) []pick.Caveat {
	caveat := func(text string, now func() bool) []pick.Caveat {
		return []pick.Caveat{{Reason: string(token.ByClock), Text: text, Now: now}}
	}
	if slices.ContainsFunc(models, (*token.Model).PrintsTime) {
		return caveat("its chat template prints the time of the day, by the engine's clock; its conversations are estimated", nil)
	}
	dated := slices.DeleteFunc(slices.Clone(models), func(m *token.Model) bool { return !m.PrintsDate() })
	if len(dated) == 0 {
		return nil
	}
	return caveat("its chat template prints the date, by the engine's clock, and the dates that it may be there have different numbers of tokens now; its conversations are estimated",
		func() bool { return slices.ContainsFunc(dated, (*token.Model).DatesDiffer) })
}

// nameOf names an engine by its kind and version.
func nameOf(e pick.Engine) string {
	switch {
	case e.Kind == "" && e.Version == "":
		return "an engine of unknown type"
	case e.Version == "":
		return e.Kind + " of unknown version"
	}
	return strings.TrimSpace(e.Kind + " " + e.Version)
}
