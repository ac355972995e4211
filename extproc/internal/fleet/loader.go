package fleet

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
)

// reload is how long an unreadable tokenizer waits for another try.
const reload = 5 * time.Second

// reader is a model that wants a tokenizer.
type reader struct {
	name string
	*pick.Learned
}

// tokenizers returns which models want which tokenizer file.
func (s *state) tokenizers() map[string][]reader {
	want := map[string][]reader{}
	for name, m := range s.models {
		if path := m.resource.GetTokenizer(); path != "" {
			want[path] = append(want[path], reader{name, m.learned})
		}
	}
	return want
}

// loader reads tokenizers beside the requests: until one is read, its models'
// tokens are estimated.
type loader struct {
	// Constant after newLoader.
	load func(path string) (pick.Counter, error)
	log  *slog.Logger
	wake chan struct{} // holds one: something new is wanted

	// mu guards the fields below.
	mu     sync.Mutex
	wanted map[string][]reader // by path
	failed map[string]error    // by path
	// caveats are why conversations are estimated: by path if it is the template that
	// is to blame, else by model.
	caveats map[caveatOf][]pick.Caveat
}

// caveatOf is what a caveat is of; model is empty if it is of all that have the tokenizer.
type caveatOf struct{ path, model string }

func newLoader(load func(string) (pick.Counter, error), log *slog.Logger) *loader {
	return &loader{load: load, log: log, wake: make(chan struct{}, 1), failed: map[string]error{}, caveats: map[caveatOf][]pick.Caveat{}}
}

// want replaces what is wanted.
func (l *loader) want(w map[string][]reader) {
	l.mu.Lock()
	l.wanted = w
	maps.DeleteFunc(l.failed, func(path string, _ error) bool { return w[path] == nil })
	maps.DeleteFunc(l.caveats, func(of caveatOf, _ []pick.Caveat) bool {
		return !slices.ContainsFunc(w[of.path], func(r reader) bool { return of.model == "" || r.name == of.model })
	})
	l.mu.Unlock()
	l.again()
}

// run reads what is wanted until ctx ends.
func (l *loader) run(ctx context.Context) error {
	have := map[string]pick.Counter{}
	for {
		var again <-chan time.Time
		if l.pass(ctx, have) {
			again = time.After(reload)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-again:
		}
	}
}

// pass gives each model its tokenizer, reading those that are not there yet. It
// returns whether one could not be read.
func (l *loader) pass(ctx context.Context, have map[string]pick.Counter) (failed bool) {
	l.mu.Lock()
	wanted := l.wanted
	l.mu.Unlock()
	maps.DeleteFunc(have, func(path string, _ pick.Counter) bool { return wanted[path] == nil })
	for _, path := range slices.Sorted(maps.Keys(wanted)) {
		if ctx.Err() != nil {
			return false
		}
		if have[path] == nil {
			have[path] = l.read(ctx, path)
		}
		failed = failed || have[path] == nil
		found := map[string][]pick.Caveat{} // by model: several pools may have one of a name
		for _, m := range wanted[path] {
			c := tailored(have[path], m.Engines())
			m.SetCounter(c)
			all := found[m.name]
			for _, one := range caveatsOf(c) {
				if !slices.ContainsFunc(all, func(had pick.Caveat) bool { return had.Reason == one.Reason && had.Text == one.Text }) {
					all = append(all, one)
				}
			}
			found[m.name] = all
		}
		for _, name := range slices.Sorted(maps.Keys(found)) {
			l.note(caveatOf{path, name}, found[name])
		}
	}
	return failed
}

// tailored is a tokenizer for the engines that use it.
func tailored(c pick.Counter, engines []pick.Engine) pick.Counter {
	if t, ok := c.(pick.Tailor); ok && len(engines) > 0 {
		return t.For(engines)
	}
	return c
}

// again has tokenizers set anew: their engines are others.
func (l *loader) again() {
	select {
	case l.wake <- struct{}{}:
	default: // the loader has yet to look
	}
}

// longestRead is how long a tokenizer may take to be read: some are large, and their
// disks slow.
const longestRead = time.Minute

// read reads one tokenizer; nil: it could not.
func (l *loader) read(ctx context.Context, path string) pick.Counter {
	began := time.Now()
	c, err := regular.Until(ctx, longestRead, path, func() (pick.Counter, error) { return l.load(path) })
	if ctx.Err() != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.failed[path] == nil {
			l.log.Warn("tokenizer unreadable, prompt tokens are estimated", "error", err)
		}
		l.failed[path] = err
		return nil
	}
	delete(l.failed, path)
	l.log.Info("tokenizer read", "path", path, "took", time.Since(began).Round(time.Millisecond))
	return c
}

// note keeps why conversations of a model are estimated.
func (l *loader) note(of caveatOf, all []pick.Caveat) {
	if len(all) > 0 && all[0].Reason == byTemplate {
		of.model = ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.wanted[of.path], func(r reader) bool { return of.model == "" || r.name == of.model }) {
		return // nobody wants it any more
	}
	if len(all) == 0 {
		delete(l.caveats, of)
		return
	}
	if of.model == "" && l.caveats[of] == nil {
		l.log.Warn("chat template not rendered, conversations are estimated", "path", of.path, "error", all[0].Text)
	}
	l.caveats[of] = all
}

// byTemplate is the reason that is the tokenizer's own.
const byTemplate = "template"

// caveatsOf is why conversations are estimated.
func caveatsOf(c pick.Counter) []pick.Caveat {
	if d, ok := c.(pick.Doubter); ok {
		return d.Caveats()
	}
	return nil
}

// conditions returns what could not be read, and what could not be understood.
func (l *loader) conditions() []obs.Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []obs.Condition
	for _, path := range slices.Sorted(maps.Keys(l.failed)) {
		all = append(all, obs.Condition{
			Code: "tokenizer",
			Text: fmt.Sprintf("tokenizer: %v; prompt tokens are estimated", l.failed[path]),
			Next: "set the model's tokenizer to a GGUF or tokenizer.json that extproc can read",
		})
	}
	for _, of := range slices.SortedFunc(maps.Keys(l.caveats), func(a, b caveatOf) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.model, b.model))
	}) {
		for _, c := range l.caveats[of] {
			if c.Now == nil || c.Now() {
				all = append(all, conditionOf(of, c))
			}
		}
	}
	return all
}

// conditionOf is a caveat's.
func conditionOf(of caveatOf, c pick.Caveat) obs.Condition {
	counted := "; millrace_extproc_estimated_prompts_total counts the requests"
	switch c.Reason {
	case byTemplate:
		return obs.Condition{
			Code: c.Reason, Text: fmt.Sprintf("tokenizer %s: %s; the tokens of conversations are estimated", of.path, c.Text),
			Next: "put a chat_template.jinja that Jinja2 accepts beside tokenizer.json, without tags such as include" + counted,
		}
	case "clock":
		return obs.Condition{
			Code: c.Reason, Text: fmt.Sprintf("model %s: %s", of.model, c.Text),
			Next: "give the date in templateArgs if the template takes one (date_string), or leave it: the estimate is off by a few tokens" + counted,
		}
	case "harmony":
		return obs.Condition{
			Code: c.Reason, Text: fmt.Sprintf("model %s: %s", of.model, c.Text),
			Next: "run an engine and release whose way is known (envoy/README.md names them)" + counted,
		}
	}
	return obs.Condition{
		Code: c.Reason, Text: fmt.Sprintf("model %s: %s", of.model, c.Text),
		Next: "run one release of vLLM or SGLang that is known (envoy/README.md names them) for the model, with its endpoints' type and templateArgs set right" + counted,
	}
}
