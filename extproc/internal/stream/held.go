package stream

import (
	"sync/atomic"

	"millrace.dev/millrace/extproc/internal/openai"
)

// Envoy holds a body from its first byte until the answer begins, and so do we while we
// look at it: what all of them may be together is bounded by the policy. A request has
// room for its body before that comes, so that a burst of bodies is refused at their
// headers, while both programs can still answer.

// light is up to what size a body may take the last of the room, in bytes: a few large
// ones that come slowly do not keep the small ones out.
const light = 256 << 10

// lightShare is how much of the room is for light bodies alone.
const lightShare = 0.25

// held is how many bytes of bodies are held at a time.
type held struct{ bytes atomic.Int64 }

// take takes room for a body of so many bytes of most in all; false: there is none. A
// body always has room if no other is held.
func (h *held) take(size, most int64) bool {
	room := most
	if size > light {
		room -= int64(lightShare * float64(most))
	}
	for {
		n := h.bytes.Load()
		if n > 0 && n+size > room {
			return false
		}
		if h.bytes.CompareAndSwap(n, n+size) {
			return true
		}
	}
}

// hold takes room for the request's body, or answers it.
func (x *Exchange) hold(end bool) *openai.Error {
	if x.table == nil || x.table.Policy.MaxHeld <= 0 || x.head.Mode != Buffered && x.head.Mode != Duplex {
		return nil
	}
	size := x.head.Length
	if end {
		size = 0
	} else if size < 0 {
		size = unsaid // until it has come
		if limit := x.limit(); limit > 0 {
			size = min(size, limit)
		}
	}
	if size <= 0 {
		return nil
	}
	if !x.core.held.take(size, x.table.Policy.MaxHeld) {
		return openai.Busy()
	}
	x.size = size
	return nil
}

// unsaid is what a body is taken for that does not say its length, until it is there.
const unsaid = 4 << 20

// came says how many bytes the body has, and its copies.
func (x *Exchange) came(size int64) {
	if x.size > 0 && size != x.size {
		x.core.held.bytes.Add(size - x.size)
		x.size = size
	}
}

// unhold gives the room back. Doing it again does nothing.
func (x *Exchange) unhold() {
	x.core.held.bytes.Add(-x.size)
	x.size = 0
}
