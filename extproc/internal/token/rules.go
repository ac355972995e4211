package token

import (
	"fmt"
	"time"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Rules are what of an engine changes how it renders a model's conversations. Engines with
// the same ones, such as most releases of a kind and the next, count the same. Compare them
// with ==.
type Rules struct {
	habits  habits
	args    string // the JSON of the template's arguments by default, one object after the other
	harmony bool   // whether it does without the template, by Harmony's form
}

// Rules returns the rules of an engine for the model.
func (m *Model) Rules(e Engine) Rules {
	if m.template == nil {
		return Rules{} // of what is not rendered nothing differs
	}
	t := m.template
	r := Rules{harmony: !t.llama && t.mentions("<|channel|>") && t.mentions("<|start|>") && e.Kind != "sglang"}
	habits, by := habitsOf(e)
	if by != nil && !t.llama {
		habits.lists = by(t.jinja, t.source)
	}
	r.habits = habits
	for _, text := range e.Args {
		if text != "{}" {
			r.args += text
		}
	}
	return r
}

// For returns the model as an engine renders its conversations. It shares all else with m.
func (m *Model) For(e Engine) (*Model, error) {
	of := &Model{
		bpe: m.bpe, specials: m.specials, memo: m.memo, ids: m.ids, added: m.added, addedTo: m.addedTo,
		bos: m.bos, eos: m.eos, nfc: m.nfc, images: m.images, broken: m.broken,
	}
	if m.template == nil {
		return of, nil
	}
	rules, t := m.Rules(e), *m.template
	t.habits, t.harmony, t.channels = rules.habits, rules.harmony, rules.harmony && m.channels()
	for _, text := range e.Args {
		if err := t.give(text); err != nil {
			return nil, err
		}
	}
	t.learn()
	of.template = &t
	of.form.Store(formOf(&t, of, time.Now()))
	return of, nil
}

// give has the template get arguments by default, a JSON object; empty: none.
func (t *template) give(text string) error {
	if text == "" {
		return nil
	}
	given, err := jinja.FromJSON([]byte(text))
	args, ok := given.(*jinja.Dict)
	if err != nil || !ok {
		return fmt.Errorf("template arguments %.80q: must be a JSON object", text)
	}
	if args.Len() == 0 {
		return nil // none are not the same as some: vLLM keeps a request's nulls then
	}
	if t.args == nil {
		t.args = jinja.NewDict(args.Len())
	}
	t.args.Update(args)
	return nil
}
