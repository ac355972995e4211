package fleet

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/reach"
)

// fileTicks is after how many ticks the file is checked: twice a second.
const fileTicks = 5

// watch reads the file again if it has changed. One with faults changes nothing.
func (l *Local) watch(now time.Time) {
	if !l.stamps.Changed() {
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
	for i, e := range f.Endpoints {
		if err := reach.Check(e); err != nil {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %w", i, err))
		}
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

// fileRemedies are what to do about endpoints of a file.
var fileRemedies = remedies{
	down:    "start them, or take them out of the file",
	metrics: "start engines with metrics (llama-server: --metrics, SGLang: --enable-metrics), correct the URL, or set type: openai",
	events:  "start vLLM with --kv-events-config and publisher zmq: an endpoint with a * is for kvEvents.connect, one without for kvEvents.listen",
}

// Conditions returns what is wrong: the file, endpoints that don't answer, metrics
// that don't come, tokenizers that can't be read.
func (l *Local) Conditions() []obs.Condition {
	l.mu.Lock()
	fault := l.fault
	l.mu.Unlock()
	var all []obs.Condition
	if fault != nil {
		all = append(all, obs.Condition{
			Code: "fleet-file",
			Text: fmt.Sprintf("%v; what was read before holds", fault),
			Next: "correct the file; it is read again as soon as it changes (extproc -check -fleet FILE checks it)",
		})
	}
	return append(all, l.probed.conditions(fileRemedies)...)
}

// list names the first few.
func list(names []string) string {
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
