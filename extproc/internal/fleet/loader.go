package fleet

import (
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

// tokenizers returns which models want which tokenizer file.
func (s *state) tokenizers() map[string][]*pick.Learned {
	want := map[string][]*pick.Learned{}
	for _, m := range s.models {
		if path := m.resource.GetTokenizer(); path != "" {
			want[path] = append(want[path], m.learned)
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
	wanted map[string][]*pick.Learned // by path
	failed map[string]error           // by path
	doubts map[string]error           // by path: why conversations are estimated
}

// doubter is a Counter that may have to estimate all conversations.
type doubter interface {
	Doubts() error
}

func newLoader(load func(string) (pick.Counter, error), log *slog.Logger) *loader {
	return &loader{load: load, log: log, wake: make(chan struct{}, 1), failed: map[string]error{}, doubts: map[string]error{}}
}

// want replaces what is wanted.
func (l *loader) want(w map[string][]*pick.Learned) {
	l.mu.Lock()
	l.wanted = w
	maps.DeleteFunc(l.failed, func(path string, _ error) bool { return w[path] == nil })
	maps.DeleteFunc(l.doubts, func(path string, _ error) bool { return w[path] == nil })
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
		for _, m := range wanted[path] {
			m.SetCounter(tailored(have[path], m.Engines()))
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
	delete(l.doubts, path)
	if err := doubtsOf(c); err != nil {
		l.log.Warn("chat template not rendered, conversations are estimated", "path", path, "error", err)
		l.doubts[path] = err
	}
	l.log.Info("tokenizer read", "path", path, "took", time.Since(began).Round(time.Millisecond))
	return c
}

// doubtsOf is why all conversations are estimated, if they are.
func doubtsOf(c pick.Counter) error {
	if d, ok := c.(doubter); ok {
		return d.Doubts()
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
	for _, path := range slices.Sorted(maps.Keys(l.doubts)) {
		all = append(all, obs.Condition{
			Code: "template",
			Text: fmt.Sprintf("tokenizer %s: %v; the tokens of conversations are estimated", path, l.doubts[path]),
			Next: "put a chat_template.jinja that Jinja2 accepts beside tokenizer.json, without tags such as include; millrace_extproc_estimated_prompts_total counts the requests",
		})
	}
	return all
}
