package traces

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// notes are what a span says of itself.
func notes(s *Span) []string {
	var all []string
	number := func(key, unit string) {
		if n, ok := s.Attributes[key].(float64); ok && n > 0 {
			all = append(all, fmt.Sprintf("%.0f %s", n, unit))
		}
	}
	if s.Name == spanPick {
		if text, _ := s.Attributes[attrReason].(string); text != "" {
			all = append(all, text)
		}
		candidates, _ := s.Attributes[attrCandidates].([]string)
		return append(all, candidates...)
	}
	if text, _ := s.Attributes[attrQueue].(string); text != "" {
		all = append(all, "for "+text)
	}
	number(attrCode, "is the status")
	number(attrInput, "tokens of prompt")
	number(attrCached, "of them cached")
	number(attrOutput, "tokens generated")
	shards, _ := s.Attributes[attrShards].([]string)
	for _, one := range shards {
		node, share, _ := strings.Cut(one, " ")
		all = append(all, fmt.Sprintf("%s has %s of the layers", node, share))
	}
	return all
}

// width is that of the picture, in characters.
const width = 30

// String is the waterfall for a person.
func (w *Waterfall) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "trace %s, %.1f ms\n\n", w.Trace, w.Millis)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range w.Rows {
		who := r.Service
		if r.Node != "" {
			who += "@" + r.Node
		}
		name := strings.Repeat("  ", r.Depth) + r.Name
		if r.Failed {
			name += " (failed)"
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f ms\t|%s|\t%s\n", name, who, r.Millis, bar(r.At, r.Millis, w.Millis), strings.Join(r.Notes, ", "))
	}
	_ = t.Flush()
	fmt.Fprintf(&b, "\n")
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, p := range w.Parts {
		fmt.Fprintf(t, "%s\t%.1f ms\t%.0f %%\n", p.Name, p.Millis, 100*p.Millis/max(w.Millis, 1e-6))
	}
	_ = t.Flush()
	fmt.Fprintf(&b, "\nmost of it: %s\n", w.Bottleneck)
	return b.String()
}

// bar is a span in the picture.
func bar(at, took, total float64) string {
	from := int(width * at / max(total, 1e-6))
	from = min(max(from, 0), width-1)
	n := min(max(int(width*took/max(total, 1e-6)+0.5), 1), width-from)
	return strings.Repeat(" ", from) + strings.Repeat("=", n) + strings.Repeat(" ", width-from-n)
}
