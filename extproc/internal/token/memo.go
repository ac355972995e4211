package token

import (
	"hash/maphash"
	"math/bits"
)

// minMemo is the shortest text worth remembering, in bytes.
const minMemo = 64

// memoSlots bounds the memo: 16 bytes each, 1 MiB in all.
const memoSlots = 1 << 16

// memo remembers the tokens of whole messages by 96 bits of two keyed hashes,
// so that the turns of a conversation that were there before cost only those.
// Its slots are lock-free like those of cache.
type memo struct {
	first, second maphash.Seed
	slots         [memoSlots]slot
}

func newMemo() *memo { return &memo{first: maphash.MakeSeed(), second: maphash.MakeSeed()} }

// memoized counts text in which special tokens are found.
func (m *Model) memoized(text []byte) int {
	if len(text) < minMemo {
		return m.tokens(text, true)
	}
	s, low, high := m.memo.find(text)
	plain := s.plain.Load()
	if plain != 0 && plain>>32 == high && s.scrambled.Load()^scramble(plain) == low {
		return int(uint32(plain))
	}
	n := m.tokens(text, true)
	plain = high<<32 | uint64(n)
	s.plain.Store(plain)
	s.scrambled.Store(low ^ scramble(plain))
	return n
}

func (m *memo) find(text []byte) (s *slot, low, high uint64) {
	low, high = maphash.Bytes(m.first, text), maphash.Bytes(m.second, text)
	return &m.slots[low%memoSlots], low, high >> 32
}

// scramble mixes a slot's plain word, so that halves of two writes don't match.
func scramble(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0x2545f4914f6cdd1d, 0x9e3779b97f4a7c15)
	return hi ^ lo
}
