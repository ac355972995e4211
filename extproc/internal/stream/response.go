package stream

import (
	"bytes"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
)

// A request of Responses may go on from an earlier response, by its id: the
// conversation before is not in the body, and it is where the response was made,
// often nowhere else. So an id is the name of a session, which begins with the
// answer that has it. Our engines tell the id in a header or trailer; of others we
// learn it only where Envoy shows us the answer's body.

// response names the session of a response's id.
func response(m *pick.Model, id []byte) session.Key { return session.Named(m.Seed, string(id)) }

// noteResponse records who made the response with the id.
func (x *Exchange) noteResponse(id string, now time.Time) {
	if id == "" || len(id) > longestID || x.served == nil || !x.good || x.api != openai.Responses {
		return
	}
	x.looked = true
	tokens := uint32(x.decision.PromptTokens + x.decision.OutputTokens)
	x.table.Policy.Prefixes.Name(response(x.model, []byte(id)), x.served.KV, tokens, now)
}

// lookForResponse looks for the id at the beginning of an answer's body.
func (x *Exchange) lookForResponse(body []byte, now time.Time) {
	if x.looked || x.api != openai.Responses || len(body) == 0 {
		return
	}
	x.looked = true
	x.noteResponse(string(responseID(body)), now)
}

const (
	// longestID bounds the id of a response, in bytes.
	longestID = 128
	// idWithin is in how much of an answer the id is looked for, in bytes.
	idWithin = 4 << 10
)

var (
	idKey    = []byte(`"id":`)
	idPrefix = []byte(`"resp_`)
)

// responseID returns the first id of a response in the beginning of an answer, one
// JSON object or events. Inside a text its quotes would be escaped.
func responseID(b []byte) []byte {
	b = b[:min(len(b), idWithin)]
	for {
		_, rest, ok := bytes.Cut(b, idKey)
		if !ok {
			return nil
		}
		b = rest
		value := bytes.TrimLeft(rest, " ")
		if !bytes.HasPrefix(value, idPrefix) {
			continue
		}
		id, _, ok := bytes.Cut(value[1:min(len(value), longestID+2)], []byte(`"`))
		if ok && named(id) {
			return id
		}
	}
}

// named reports whether all of an id is as ids are.
func named(id []byte) bool {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// continued returns the model that made the response which the request continues:
// of those that serve the name it must be the same again. nil: it is not known.
func (x *Exchange) continued(r *pick.Rewrite, now time.Time) *pick.Model {
	if x.request.Previous == nil {
		return nil
	}
	for i := range r.To {
		m := x.table.Models[r.To[i].Model]
		if m == nil {
			continue
		}
		if _, ok := x.table.Policy.Prefixes.Get(response(m, x.request.Previous), now); ok {
			return m
		}
	}
	return nil
}

// goesOn finds where the response is that the request continues, and returns its
// length, which is a part of the prompt.
func (x *Exchange) goesOn(now time.Time) int {
	if x.shape.Blind || x.request.Previous == nil {
		return 0
	}
	p, ok := x.table.Policy.Prefixes.Get(response(x.model, x.request.Previous), now)
	if !ok {
		return 0
	}
	x.before = p
	return int(p.Tokens)
}

// goOnFrom adds where the response is to where parts of the prompt are, and returns its
// name for people.
func (x *Exchange) goOnFrom(name string) string {
	if x.before.Cache == 0 {
		return name
	}
	x.found.Add(x.before)
	if x.head.Session != "" {
		return name
	}
	return printable(string(x.request.Previous))
}

// pin puts whoever has the response that the request continues first in the list:
// others may not know it.
func (x *Exchange) pin() {
	if x.before.Cache == 0 {
		return
	}
	list := x.choice.List
	for i := range list {
		if list[i].KV.ID() == x.before.Cache {
			first := list[i]
			copy(list[1:], list[:i])
			list[0] = first
			return
		}
	}
}
