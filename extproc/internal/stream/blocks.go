package stream

import (
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
)

// hear looks up the prompt's blocks at the endpoints whose engines say what they hold.
// Where that is all that they hold, and it is certain what the prompt's blocks are, it
// counts in place of what we believe; else beside it.
func (x *Exchange) hear() {
	ids, exact := x.identify()
	if len(ids) == 0 {
		return
	}
	chain, adapter, size := x.blocks[:0], "", 0
	for _, e := range x.model.Tell {
		known, n := e.Blocks.Knowledge()
		if known == prefix.Nothing {
			continue
		}
		a, unclear := e.Adapter(x.model), e.Unclear(x.model)
		if unclear {
			a = x.model.Name // then what the base made is not taken for its own
		}
		if n != size || a != adapter {
			size, adapter = n, a
			chain = prefix.AppendBlocks(chain[:0], prefix.BlockRoot(adapter), ids, size)
		}
		x.found.Told(e.KV.Place(size*e.Blocks.Count(chain)), exact && !unclear && known == prefix.Whole)
	}
	x.blocks = chain
}

// identify returns the prompt's tokens; none: they are not known, or are no use.
func (x *Exchange) identify() (ids []uint32, exact bool) {
	r := &x.request
	c, ok := x.model.Counter().(pick.Identifier)
	if !ok || len(r.Media) > 0 || len(r.Prompts) > 1 || r.Salted || !x.anyTells() {
		return nil, false
	}
	x.tokens, exact = c.IDs(x.tokens[:0], r)
	return x.tokens, exact
}

// anyTells tells whether any engine says now what it holds.
func (x *Exchange) anyTells() bool {
	for _, e := range x.model.Tell {
		if known, _ := e.Blocks.Knowledge(); known != prefix.Nothing {
			return true
		}
	}
	return false
}
