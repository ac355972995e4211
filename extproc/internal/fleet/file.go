package fleet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/wire"
)

// fileTicks is after how many ticks the file is checked: twice a second.
const fileTicks = 5

// watch reads the file again if it has changed. One with faults changes nothing.
func (l *Local) watch(now time.Time) {
	l.mu.Lock()
	changed := l.stamps.Changed()
	l.mu.Unlock()
	if !changed {
		return
	}
	err := l.load(now)
	l.metrics.read(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.fault
	l.fault = err
	switch {
	case err == nil:
		l.log.Info("fleet read", "file", l.path, "endpoints", len(l.locals), "models", len(l.state.models))
	case was == nil || was.Error() != err.Error():
		l.log.Warn("fleet refused, what was read before holds", "file", l.path, "error", err)
	}
}

// CheckFile returns all that is wrong with the file at path and with the files that
// it names; load reads tokenizers.
func CheckFile(path string, load func(path string) (pick.Counter, error)) error {
	f, err := config.LoadFleet(path)
	if err != nil {
		return err
	}
	var errs []error
	if _, err := cookieKey(f.Policy.Sessions.Cookie, nil); err != nil {
		errs = append(errs, err)
	}
	for i, m := range f.Models {
		if m.Tokenizer == "" {
			continue
		}
		if _, err := load(m.Tokenizer); err != nil {
			errs = append(errs, fmt.Errorf("models[%d].tokenizer: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// shown is how many endpoints a Condition names.
const shown = 3

// Conditions returns what is wrong: the file, endpoints that don't answer, metrics
// that don't come, tokenizers that can't be read.
func (l *Local) Conditions() []obs.Condition {
	l.mu.Lock()
	all, n := l.conditionsLocked(), len(l.locals)
	l.mu.Unlock()
	if deaf := l.deaf(); len(deaf) > 0 {
		all = append(all, obs.Condition{
			Code: wire.NoKVEvents,
			Text: fmt.Sprintf("cache events of %d of %d endpoints do not come or are refused: %s; what they have cached is guessed", len(deaf), n, list(deaf)),
			Next: "start vLLM with --kv-events-config and publisher zmq: an endpoint with a * is for kvEvents.connect, one without for kvEvents.listen",
		})
	}
	return append(all, l.loader.conditions()...)
}

// conditionsLocked returns what is wrong with the file and with endpoints.
func (l *Local) conditionsLocked() []obs.Condition {
	var all []obs.Condition
	if l.fault != nil {
		all = append(all, obs.Condition{
			Code: "fleet-file",
			Text: fmt.Sprintf("%v; what was read before holds", l.fault),
			Next: "correct the file; it is read again as soon as it changes (extproc -check -fleet FILE checks it)",
		})
	}
	var down, dumb []string
	for _, address := range slices.Sorted(maps.Keys(l.locals)) {
		p := l.locals[address]
		switch {
		case p.last == nil:
		case p.last.State != probe.Ready:
			down = append(down, address)
		case p.last.MetricsErr != nil:
			dumb = append(dumb, fmt.Sprintf("%s (%v)", p.entry.Metrics, p.last.MetricsErr))
		}
	}
	n := len(l.locals)
	if len(down) > 0 {
		all = append(all, obs.Condition{
			Code: wire.EndpointsDown,
			Text: fmt.Sprintf("%d of %d endpoints do not answer: %s", len(down), n, list(down)),
			Next: "start them, or take them out of the file",
		})
	}
	if len(dumb) > 0 {
		all = append(all, obs.Condition{
			Code: wire.NoMetrics,
			Text: fmt.Sprintf("metrics of %d of %d endpoints do not come: %s; they serve by what this extproc has sent them", len(dumb), n, list(dumb)),
			Next: "start engines with metrics (llama-server: --metrics, SGLang: --enable-metrics), correct the URL, or set type: openai",
		})
	}
	return all
}

// list names the first few.
func list(names []string) string {
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
