package stream

import (
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/extproc/internal/openai"
)

// Envoy holds a body from its first byte until the answer begins, and so do we while we
// decode it: what all of them may be together is bounded by the policy. A request has
// room for its body before that comes, so that a burst of bodies is refused at their
// headers, while both programs can still answer.

// light is up to what size a body may take the last of the room, in bytes: a few large
// ones that come slowly do not keep the small ones out.
const light = 256 << 10

// lightShare is how much of the room is for light bodies alone.
const lightShare = 0.25

// room is how many bytes of bodies are held at a time, and how many streams there are.
type room struct{ bytes, streams atomic.Int64 }

// MostStreams is how many streams there may be at a time. Those between the last sixteenth
// and it are answered with 503, further ones end at once.
const MostStreams = 12 << 10

// leastFree is the share of MostStreams by which requests are refused.
const leastFree = MostStreams / 16

var errStreams = status.Errorf(codes.ResourceExhausted, "%d streams are open; no more are taken", MostStreams)

// decoding has a place for each body that is decoded at a time which may take much memory
// for that: its messages and tokens are several times as large as itself.
var decoding = make(chan struct{}, Decoders)

// Decoders is how many of those are decoded at a time.
const Decoders = 4

// Bodies returns how many bytes of bodies are held by all cores that are bounded together.
func (c *Core) Bodies() int64 { return c.room.bytes.Load() }

// Streams returns how many streams of theirs are open.
func (c *Core) Streams() int64 { return c.room.streams.Load() }

// take takes room for a body of so many bytes of most in all; false: there is none. A
// body always has room if no other is held.
func (r *room) take(size, most int64) bool {
	left := most
	if size > light {
		left -= int64(lightShare * float64(most))
	}
	for {
		n := r.bytes.Load()
		if n > 0 && n+size > left {
			return false
		}
		if r.bytes.CompareAndSwap(n, n+size) {
			return true
		}
	}
}

// takeRoom takes room for the request's body, or answers it.
func (x *Exchange) takeRoom(end bool) *openai.Error {
	if x.core.room.streams.Load() > MostStreams-leastFree {
		return openai.Busy()
	}
	if x.table == nil || x.table.Policy.MaxInFlight <= 0 || x.head.Mode != Buffered && x.head.Mode != Duplex {
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
	tight := size > light && x.core.tight != nil && x.core.tight()
	if tight || !x.core.room.take(size, x.table.Policy.MaxInFlight) {
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
		x.core.room.bytes.Add(size - x.size)
		x.size = size
	}
}

// freeRoom gives the room back, and what was decoded. Doing it again does nothing.
func (x *Exchange) freeRoom() {
	x.clear()
	x.core.room.bytes.Add(-x.size)
	x.size = 0
}
