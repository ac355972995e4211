package fleet

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/token"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/reach"
)

// fileTicks is after how many ticks the file is checked: twice a second.
const fileTicks = 5

// watch reads the file again if it has changed. One with faults changes nothing.
func (l *Local) watch() {
	if !l.stamps.Changed() {
		return
	}
	err := l.load()
	l.metrics.read(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.fault
	l.fault = err
	if err != nil && (was == nil || was.Error() != err.Error()) {
		l.log.Warn("fleet refused, what was read before holds", "file", l.options.File, "error", err)
	}
}

// CheckFile returns all that is wrong with the file at path and with the files that
// it names; load reads tokenizers. What works, but not as well as it could, is written
// to notes.
func CheckFile(path string, load func(path string) (pick.Counter, error), notes io.Writer) error {
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
		c, err := load(m.Tokenizer)
		if err != nil {
			errs = append(errs, fmt.Errorf("models[%d].tokenizer: %w", i, err))
			continue
		}
		for _, why := range caveatsOf(tailored(c, newestOf(f, m))) {
			switch {
			case why.Now != nil && !why.Now():
			case why.Reason == byTemplate:
				fmt.Fprintf(notes, "models[%d].tokenizer: %s; the tokens of conversations are estimated\n", i, why.Text)
			default:
				fmt.Fprintf(notes, "models[%d]: %s: %s\n", i, why.Reason, why.Text)
			}
		}
	}
	return errors.Join(errs...)
}

// newestOf are the engines that serve a model, by what the file says: engines say their
// versions themselves, so that each is taken to be the newest that is known.
func newestOf(f config.Fleet, m config.FleetModel) (all []pick.Engine) {
	for _, e := range f.Endpoints {
		if len(e.Models) > 0 && !slices.Contains(e.Models, m.Name) {
			continue
		}
		all = append(all, pick.Engine{Kind: e.Type, Version: token.Newest(e.Type), Args: [2]string{m.TemplateArgs, e.TemplateArgs}})
	}
	return all
}

// fileRemedies are what to do about endpoints of a file.
var fileRemedies = remedies{
	down:    "start them, or take them out of the file",
	models:  "correct models in the file, or the name under which the engine serves (vLLM: --served-model-name, llama-server: --alias)",
	metrics: "start engines with metrics (llama-server: --metrics, SGLang: --enable-metrics), correct the URL, or set type: openai",
	events:  "start vLLM with --kv-events-config and publisher zmq: an endpoint with a * is for kvEvents.connect, one without for kvEvents.listen",
}

// Conditions returns what is wrong: the file, host names that aren't known, endpoints that
// don't answer or serve other models, metrics that don't come, tokenizers that can't be
// read.
func (l *Local) Conditions() []obs.Condition {
	l.mu.Lock()
	fault, unknown := l.fault, l.table == nil
	l.mu.Unlock()
	var all []obs.Condition
	if unknown {
		all = append(all, obs.Condition{
			Code: "no-fleet", Text: "none of the fleet's host names is known: Envoy chooses among the hosts that it has",
			Next: "see host-names", Severity: obs.Blocking,
		})
	}
	if fault != nil {
		all = append(all, obs.Condition{
			Code: "fleet-file",
			Text: fmt.Sprintf("%v; the previous configuration stays in force", fault),
			Next: "correct the file; it is read again as soon as it changes (extproc -check -fleet FILE checks it)",
		})
	}
	if lost := faults(l.names.Faults()); len(lost) > 0 {
		all = append(all, obs.Condition{
			Code: "host-names",
			Text: fmt.Sprintf("%d host names are not known as they are now: %s; what they stood for before holds", len(lost), list(lost)),
			Next: "correct the names in the file, or what DNS says of them (-dns names another server)",
		})
	}
	return append(all, l.probed.conditions(fileRemedies)...)
}

// faults are texts of faults, in order.
func faults(all map[string]error) (texts []string) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		texts = append(texts, fmt.Sprintf("%s (%v)", name, all[name]))
	}
	return texts
}

// list names the first few.
func list(names []string) string {
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
