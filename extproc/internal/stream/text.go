package stream

import (
	"strconv"

	"millrace.dev/millrace/extproc/internal/pick"
)

// appendHosts appends the list for Envoy: "ip:port,ip:port".
func (d *Decision) appendHosts(b []byte) []byte {
	for i := range d.Choice.List {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, d.Choice.List[i].Address...)
	}
	return b
}

// appendChain appends the prefixes of the prompt for the engine: "KEY.TOKENS,…",
// the shortest first, the key as 16 hexadecimal digits.
func (d *Decision) appendChain(b []byte) []byte {
	const digits = "0123456789abcdef"
	for i, l := range d.Chain {
		if i > 0 {
			b = append(b, ',')
		}
		for shift := 60; shift >= 0; shift -= 4 {
			b = append(b, digits[l.Key>>shift&15])
		}
		b = strconv.AppendUint(append(b, '.'), uint64(l.Tokens), 10)
	}
	return b
}

// appendText appends the decision for a person: "sticky 10.0.0.3:8000 412ms (wait 0
// prefill 80 decode 332), 10.0.0.7:8000 890ms", and of one that has waited "; queued 1200ms for room"
// behind that.
func (d *Decision) appendText(b []byte) []byte {
	b = append(append(b, d.Choice.Reason.String()...), ' ')
	for i := range d.Choice.List {
		c := &d.Choice.List[i]
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, c.Address...), ' ')
		b = append(appendMs(b, c.Finish()), "ms"...)
		if i == 0 {
			b = appendTerms(append(b, ' '), &c.Terms)
		}
	}
	if q := d.Queued; !q.Since.IsZero() {
		b = strconv.AppendInt(append(b, "; queued "...), q.Took.Milliseconds(), 10)
		b = append(append(b, "ms for "...), q.For()...)
	}
	return b
}

// appendTerms appends what the cost is made of, in milliseconds.
func appendTerms(b []byte, t *pick.Terms) []byte {
	between := byte('(')
	for _, term := range t.All() {
		if term.Show == pick.Always || term.Show == pick.IfAny && term.Ms >= 0.5 {
			b = append(append(append(b, between), term.Name...), ' ')
			b = appendMs(b, term.Ms)
			between = ' '
		}
	}
	return append(b, ')')
}

func appendMs(b []byte, ms float64) []byte { return strconv.AppendInt(b, int64(ms+0.5), 10) }
