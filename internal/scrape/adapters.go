package scrape

import (
	"slices"
	"strings"
)

// Adapters is what a page says of LoRA adapters.
type Adapters struct {
	// Most is how many are loaded at a time; 0: the engine takes none.
	Most int
	// Running are at work, Waiting are asked for by requests that wait.
	Running, Waiting []string
}

// Bounds of what is believed.
const (
	mostAdapters = 1024
	mostLoaded   = 1 << 16
)

// AdaptersOf reads a page. Its series has a line for each set of adapters that there
// ever was, whose value is when that was last so: the latest counts.
func (t *Type) AdaptersOf(page []byte) Adapters {
	var last Adapters
	if !t.Adapters() {
		return last
	}
	latest := -1.0
	for _, prefix := range t.prefixes {
		for l := samplesOf(page, prefix); l.next(); {
			if n := l.name(); !l.started && string(l.line[:n]) == t.adapters {
				latest = adaptersLine(&l, n, &last, latest)
			}
		}
		if latest >= 0 {
			break
		}
	}
	return last
}

// adaptersLine reads a line of the series, whose name has n bytes, into last unless it is
// older, and returns what is the latest then.
func adaptersLine(l *samples, n int, last *Adapters, latest float64) float64 {
	a, most := Adapters{}, -1.0
	labels, _ := l.behind(n)
	for labels.next() {
		switch string(labels.name) {
		case "max_lora":
			most = numberOr(labels.text, -1)
		case "running_lora_adapters":
			a.Running = adapterNames(labels.text)
		case "waiting_lora_adapters":
			a.Waiting = adapterNames(labels.text)
		}
	}
	when, ok := number(labels.rest)
	if labels.bad || !ok || most < 0 || most > mostLoaded || when < latest {
		return latest
	}
	a.Most = int(most)
	*last = a
	return when
}

// adapterNames reads a label that lists names, each once.
func adapterNames(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	names := strings.SplitN(string(text), ",", mostAdapters+1)
	names = names[:min(len(names), mostAdapters)]
	for i, name := range names {
		names[i] = unescape.Replace(name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// unescape undoes what labels are written with.
var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")
