// Package blocks knows which blocks of tokens an inference engine's KV cache holds,
// by keys that mean the same to every program of the mesh.
//
// Names turns what an engine publishes, as kvevents decodes it, into keys for a Target:
// a Set, in which extproc looks up the keys of a prompt, or a Log, which engine and xds
// report; a Reader makes a Set of such a log again. Its one rule: a key is made of all
// tokens up to its block's end and of nothing that one process knows alone, so that
// whoever computes it gets the same one.
package blocks

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// Key stands for all tokens of a prompt up to the end of a block, and for the LoRA
// adapter that they went through: 64 bits of a hash, never 0. Programs of different
// releases must agree on it.
type Key uint64

// Knowledge is how much of an engine's blocks is known.
type Knowledge uint32

const (
	// Nothing is known: the engine publishes nothing, or not now.
	Nothing Knowledge = iota
	// Parts are known: what the engine stored before its publisher was followed is not.
	Parts
	// Whole is all that the engine has cached.
	Whole
)

// Target takes in what is known of the blocks that one engine has cached. Its calls come
// one after the other.
type Target interface {
	// Know takes in how much is known, and how many tokens a block has; 0: not known.
	Know(k Knowledge, size int)
	// Add takes in a block that was not cached before. It returns false if there is no
	// room for it.
	Add(k Key) bool
	// Drop takes in that a block is cached no more.
	Drop(k Key)
	// Clear takes in that no block is cached, or known to be.
	Clear()
}

// Root is the key that the first block of a prompt follows, by adapter.
func Root(adapter string) Key {
	return Key(mix(0, xxhash.Sum64String(adapter)) | 1)
}

// Extra returns what a block depends on beside its tokens: one thing more, of which this is
// the text or the encoding, and what there was before, 0 for nothing. Order matters.
func Extra(before uint64, one []byte) uint64 { return before*31 + xxhash.Sum64(one) | 1 }

// Append appends the keys of a prompt's blocks that an engine may find in its
// cache; extra is what the first of them depends on, as a salt of the request, of which the
// others depend by that one. At least one token is always worked on: a last block that is
// not followed by a token is no use.
func Append(dst []Key, root Key, extra uint64, tokens []uint32, size int) []Key {
	for size > 0 && len(tokens) > size {
		root = next(root, tokens[:size], extra)
		dst = append(dst, root)
		tokens, extra = tokens[size:], 0
	}
	return dst
}

// next is the key of a block behind that of parent.
func next(parent Key, tokens []uint32, extra uint64) Key {
	k := uint64(parent) ^ extra*0x9e3779b97f4a7c15
	for ; len(tokens) > 1; tokens = tokens[2:] {
		k = mix(k, uint64(tokens[0])<<32|uint64(tokens[1]))
	}
	if len(tokens) > 0 {
		k = mix(k, uint64(tokens[0]))
	}
	return Key(k | 1)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9fb21c651e98df25, b^0xd6e8feb86659fd93)
	return hi ^ lo ^ bits.RotateLeft64(a, 23)
}
