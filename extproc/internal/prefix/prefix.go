// Package prefix knows which engine has which prefix of a prompt in its KV cache.
//
// Index maps the key of each prefix to the caches that have it; Cache follows
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

// Link is one prefix of a prompt.
type Link struct {
	// Key is the hash of all of it.
	Key session.Key
	// Tokens is its length.
	Tokens uint32
}

// Match is a cache that has a prefix.
type Match struct {
	// Cache is the number of the cache; 0: none.
	Cache uint32
	// Gen is the cache's generation in which the prefix was last used.
	Gen uint32
	// Tokens is how much is cached: for a whole prompt that was answered the answer
	// counts, too.
	Tokens uint32
}

// A match is packed in one word: cache, generation, tokens.
const (
	cacheBits = 20
	genBits   = 20
	tokenBits = 24

	cacheMask = 1<<cacheBits - 1
	genMask   = 1<<genBits - 1
	tokenMask = 1<<tokenBits - 1
)

func (m Match) pack() uint64 {
	return uint64(m.Cache&cacheMask)<<(genBits+tokenBits) | uint64(m.Gen&genMask)<<tokenBits | uint64(min(m.Tokens, tokenMask))
}

func unpack(w uint64) Match {
	return Match{
		Cache:  uint32(w >> (genBits + tokenBits)),
		Gen:    uint32(w>>tokenBits) & genMask,
		Tokens: uint32(w) & tokenMask,
	}
}

// MaxLinks is the most prefixes that a prompt is known by.
const MaxLinks = 64

// maxMatches is the most matches that are found for a prompt.
const maxMatches = 24

// Found is the caches that have prefixes of a prompt. It may be used again for another Find.
type Found struct {
	// Matches are the longest prefixes first. A cache may be there several times:
	// it may have evicted the longer one.
	Matches []Match
	// Shared is the length, in tokens, of the longest prefix that several
	// conversations have in common, and By about how many these are; 0: none.
	Shared int
	By     float64

	matches [maxMatches]Match
}

// sharedBy is from how many continuations on a prefix counts as shared: fewer
// are a conversation that was edited or asked again.
const sharedBy = 4

// childBits is the size of the set of continuations that is kept of a prefix.
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
