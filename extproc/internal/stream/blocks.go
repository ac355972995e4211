package stream

import (
	"sync"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/blocks"
)

// lookup is the memory of one look-up of a prompt's blocks. It is handed on at once: a
// stream that kept it until its end would keep four bytes for each token.
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

// report adds to found what engines report of the prompt's blocks. Where an engine
// reports all that it has cached, and it is certain what the prompt's blocks are, its
// report counts in place of what was estimated of its cache; else beside it. Engines that
// name no salts in their reports have no block of a prompt with one, as far as these say.
func report(m *pick.Model, r *openai.Request, found *prefix.Found) {
	l := lookups.Get().(*lookup)
	defer l.done()
	exact := l.identify(m, r)
	if len(l.tokens) == 0 {
		return
	}
	adapter, size, extra := "", 0, uint64(0)
	if len(r.Salt) > 0 {
		extra = blocks.Extra(0, r.Salt)
	}
	l.blocks = l.blocks[:0]
	for _, e := range m.WithBlocks {
		known, n := e.Blocks.Knowledge()
		if known == blocks.Nothing {
			continue
		}
		a, unclear := e.Adapter(m), e.Unclear(m)
		if unclear {
			a = m.Name // then what the base made is not taken for its own
		}
		if n != size || a != adapter {
			size, adapter = n, a
			l.blocks = blocks.Append(l.blocks[:0], blocks.Root(adapter), extra, l.tokens, size)
		}
		n = e.Blocks.Count(l.blocks)
		found.Report(e.KV.Match(size*n), exact && !unclear && known == blocks.Whole && (extra == 0 || n > 0))
	}
}

// identify finds the prompt's tokens; none: they are not known, or are no use.
func (l *lookup) identify(m *pick.Model, r *openai.Request) (exact bool) {
	l.tokens = l.tokens[:0]
	c, ok := m.Counter().(pick.Identifier)
	if !ok || len(r.Media) > 0 || len(r.Prompts) > 1 || r.Separated || !anyReports(m) {
		return false
	}
	l.tokens, exact = c.IDs(l.tokens, r)
	return exact
}

// anyReports reports whether any engine of the model reports its blocks now.
func anyReports(m *pick.Model) bool {
	for _, e := range m.WithBlocks {
		if known, _ := e.Blocks.Knowledge(); known != blocks.Nothing {
			return true
		}
	}
	return false
}
