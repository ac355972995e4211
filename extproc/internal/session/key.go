// Package session names conversations: by what the client calls them, by a signed
// cookie, and by keys of their prefixes.
//
// It is called by stream for every request. Its one rule: a name says which
// conversation it is, never where it goes.
package session

import (
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Key names a session or a prefix of a conversation. It is 64 bits of a hash,
// the same in every extproc; 0 names nothing.
type Key uint64

// Two odd constants of random bits, to fold keys with.
const (
	fold1 = 0x9fb21c651e98df25
	fold2 = 0xd6e8feb86659fd93
)

// Seed returns the key of an empty conversation with a model.
func Seed(model string) Key {
	return fold(0, xxhash.Sum64String(model))
}

// Next returns the key of the conversation k continued by a piece: the JSON of
// a message, or a block of a prompt.
func Next(k Key, piece []byte) Key {
	return fold(uint64(k), xxhash.Sum64(piece))
}

// Named returns the key of the session that a client named, of one model.
func Named(model Key, name string) Key {
	return fold(uint64(model)^fold2, xxhash.Sum64String(name))
}

// Together returns the key of k with a set of words: their order means nothing, nor how
// often each is in it. Without any it is k.
func Together(k Key, words []string) Key {
	for _, w := range slices.Compact(slices.Sorted(slices.Values(words))) {
		k = Next(k, []byte(w))
	}
	return k
}

// Numbered returns the key of the session with a number, of one model.
func Numbered(model Key, id uint64) Key { return fold(uint64(model), id) }

// fold mixes two words; order matters, and 0 does not come out.
func fold(a, b uint64) Key {
	hi, lo := bits.Mul64(a^fold1, b^fold2)
	return Key(hi ^ lo ^ bits.RotateLeft64(a, 23) | 1)
}
