package scrape

import (
	"bytes"
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
	name := []byte(t.adapters)
	latest := -1.0
	for len(page) > 0 {
		i := bytes.Index(page, name)
		if i < 0 {
			break
		}
		begins := i == 0 || page[i-1] == '\n'
		page = page[i+len(name)-1:]
		line := page
		if n := bytes.IndexByte(page, '\n'); n >= 0 {
			line = page[:n]
		}
		end := labelsEnd(line)
		if !begins || end < 0 {
			continue
		}
		when, ok := number(line[end:])
		most, ok2 := label(line[:end], `max_lora="`)
		if !ok || !ok2 || most > mostLoaded || when < latest {
			continue
		}
		latest = when
		last = Adapters{int(most), adapterNames(line[:end], `running_lora_adapters="`), adapterNames(line[:end], `waiting_lora_adapters="`)}
	}
	return last
}

// adapterNames reads a label that lists names, each once.
func adapterNames(labels []byte, name string) []string {
	text, _ := labelText(labels, name)
	if len(text) == 0 {
		return nil
	}
	names := strings.SplitN(string(text), ",", mostAdapters+1)
	names = names[:min(len(names), mostAdapters)]
	slices.Sort(names)
	return slices.Compact(names)
}
