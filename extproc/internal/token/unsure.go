package token

// Newest returns the newest version of a kind of engine that is known; empty: none is.
func Newest(kind string) string { return newest[kind] }

var newest = map[string]string{"vllm": "0.32.0", "sglang": "0.5.23"}

// Unsure returns which conversations are estimates as the version of the engine, or its kind,
// is not known; none: it is known, or nothing of it matters.
func (m *Model) Unsure() []string {
	t := m.template
	if t == nil || t.llama || t.read {
		return nil
	}
	if t.vllm && t.lists == absent {
		return []string{"all"}
	}
	all := []string{"those with lists of texts"}
	for _, c := range [...]struct {
		is   bool
		what string
	}{
		{t.thoughts == thoughtsUnclear && t.mentions("reasoning"), "reasoning"},
		{t.developer == absent, "developer messages"},
		{t.usesTools, "tools"},
		{t.last == lastUnclear, "an assistant's message at the end"},
	} {
		if c.is {
			all = append(all, c.what)
		}
	}
	return all
}

// Harmony reports whether conversations are made in Harmony's form, without the template, and
// whether it is known how.
func (m *Model) Harmony() (is, known bool) {
	t := m.template
	if t == nil || !t.harmony {
		return false, false
	}
	return true, t.channels && t.habits.harmony == yes
}
