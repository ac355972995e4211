// Package prefix knows which engine has which beginning of a prompt in its KV cache.
//
// Index maps the key of each beginning to the caches that hold it; Cache follows
// what one engine evicts. stream asks for every request and records what it sends;
// fleet records what engines report. Its one rule: it is soft state. A wrong entry
// makes a prediction worse, never an answer wrong, and memory is bounded whatever
// comes in.
package prefix

import (
	"math"
	"math/bits"

	"millrace.dev/millrace/extproc/internal/session"
)

// Link is a prompt's beginning up to some place.
type Link struct {
	// Key is the hash of all of it.
	Key session.Key
	// Tokens is its length.
	Tokens uint32
}

// Place is a cache that holds a beginning.
type Place struct {
	// Cache is the number of the cache; 0: none.
	Cache uint32
	// Gen is the cache's generation in which the beginning was last used.
	Gen uint32
	// Tokens is how much is cached: for a whole prompt that was answered the answer
	// counts, too.
	Tokens uint32
}

// A place is packed in one word: cache, generation, tokens.
const (
	cacheBits = 20
	genBits   = 20
	tokenBits = 24

	cacheMask = 1<<cacheBits - 1
	genMask   = 1<<genBits - 1
	tokenMask = 1<<tokenBits - 1
)

func (p Place) pack() uint64 {
	return uint64(p.Cache&cacheMask)<<(genBits+tokenBits) | uint64(p.Gen&genMask)<<tokenBits | uint64(min(p.Tokens, tokenMask))
}

func unpack(w uint64) Place {
	return Place{
		Cache:  uint32(w >> (genBits + tokenBits)),
		Gen:    uint32(w>>tokenBits) & genMask,
		Tokens: uint32(w) & tokenMask,
	}
}

// MaxLinks is the most beginnings that a prompt is known by.
const MaxLinks = 64

// maxPlaces is the most places that are found for a prompt.
const maxPlaces = 24

// Found is where a prompt's beginnings are. It may be used again for another Find.
type Found struct {
	// Places are the longest beginnings first. A cache may be there several times:
	// it may have evicted the longer one.
	Places []Place
	// Shared is the length, in tokens, of the longest beginning that several
	// conversations have in common, and By about how many these are; 0: none.
	Shared int
	By     float64

	places [maxPlaces]Place
}

// sharedBy is from how many continuations on a beginning counts as shared: fewer
// are a conversation that was edited or asked again.
const sharedBy = 4

// childBits is the size of the set of continuations that is kept of a beginning.
const childBits = 16

// child is the bit of a continuation.
func child(k session.Key) uint16 { return 1 << (uint64(k) >> 32 % childBits) }

// continuations estimates how many different ones a set was made of.
func continuations(set uint16) float64 {
	n := bits.OnesCount16(set)
	if n == childBits {
		return 3 * childBits
	}
	// Linear counting (Whang et al. 1990): of n balls in m boxes e^(-n/m) stay empty.
	return -childBits * math.Log1p(-float64(n)/childBits)
}
