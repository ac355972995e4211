package stream

import (
	"sync"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/blocks"
)

// lookup is the memory of one look at what engines hold. It is handed on at once: a
// stream that kept it until its end would hold four bytes for each token.
type lookup struct {
	tokens []uint32
	blocks []blocks.Key
}

var lookups = sync.Pool{New: func() any { return new(lookup) }}

// keepTokens is the largest prompt whose memory is handed on, in tokens.
const keepTokens = 1 << 17

func (l *lookup) done() {
	if cap(l.tokens) <= keepTokens {
		lookups.Put(l)
	}
}

// hear looks up the prompt's blocks at the endpoints whose engines say what they hold.
// Where that is all that they hold, and it is certain what the prompt's blocks are, it
// counts in place of what we believe; else beside it.
func (x *Exchange) hear() {
	l := lookups.Get().(*lookup)
	defer l.done()
	exact := x.identify(l)
	if len(l.tokens) == 0 {
		return
	}
	adapter, size := "", 0
	l.blocks = l.blocks[:0]
	for _, e := range x.model.WithBlocks {
		known, n := e.Blocks.Knowledge()
		if known == blocks.Nothing {
			continue
		}
		a, unclear := e.Adapter(x.model), e.Unclear(x.model)
		if unclear {
			a = x.model.Name // then what the base made is not taken for its own
		}
		if n != size || a != adapter {
			size, adapter = n, a
			l.blocks = blocks.Append(l.blocks[:0], blocks.Root(adapter), l.tokens, size)
		}
		x.found.Report(e.KV.Match(size*e.Blocks.Count(l.blocks)), exact && !unclear && known == blocks.Whole)
	}
}

// identify finds the prompt's tokens; none: they are not known, or are no use.
func (x *Exchange) identify(l *lookup) (exact bool) {
	l.tokens = l.tokens[:0]
	r := &x.request
	c, ok := x.model.Counter().(pick.Identifier)
	if !ok || len(r.Media) > 0 || len(r.Prompts) > 1 || r.Salted || !x.anyTells() {
		return false
	}
	l.tokens, exact = c.IDs(l.tokens, r)
	return exact
}

// anyTells reports whether any engine says now what it holds.
func (x *Exchange) anyTells() bool {
	for _, e := range x.model.WithBlocks {
		if known, _ := e.Blocks.Knowledge(); known != blocks.Nothing {
			return true
		}
	}
	return false
}
