package token

import (
	"hash/maphash"
	"math/bits"
)

// minMemo is the shortest text worth remembering, in bytes.
const minMemo = 64

// memoSlots bounds the memo: 16 bytes each, 1 MiB in all.
const memoSlots = 1 << 16

// memo remembers the tokens of whole messages by 64 bits of a keyed hash and
// their length, so that the turns of a conversation that were there before cost
// only that. Its slots are lock-free like those of cache.
type memo struct {
	seed  maphash.Seed
	slots [memoSlots]slot
}

func newMemo() *memo { return &memo{seed: maphash.MakeSeed()} }

// memoized counts text in which special tokens are found. It comes in pieces,
// which are joined only if they must be counted; buf is memory to join them in,
// and returned for the next time.
func (m *Model) memoized(pieces [][]byte, buf []byte) (int, []byte) {
	length := 0
	for _, p := range pieces {
		length += len(p)
	}
	if length < minMemo {
		buf = concat(pieces, buf)
		return m.tokens(buf, true), buf
	}
	hash := m.memo.hash(pieces)
	s := &m.memo.slots[hash%memoSlots]
	value := s.value.Load()
	if value>>32 == uint64(length) && s.scrambled.Load()^scramble(value) == hash {
		return int(uint32(value)), buf
	}
	text := pieces[0]
	if len(pieces) > 1 {
		buf = concat(pieces, buf)
		text = buf
	}
	n := m.tokens(text, true)
	value = uint64(length)<<32 | uint64(n)
	s.value.Store(value)
	s.scrambled.Store(hash ^ scramble(value))
	return n, buf
}

// concat puts pieces into buf, one behind the other.
func concat(pieces [][]byte, buf []byte) []byte {
	buf = buf[:0]
	for _, p := range pieces {
		buf = append(buf, p...)
	}
	return buf
}

// hash names a text by its pieces: cut elsewhere it has another name.
func (m *memo) hash(pieces [][]byte) (h uint64) {
	for _, p := range pieces {
		h = scramble(h ^ maphash.Bytes(m.seed, p))
	}
	return h
}

// scramble mixes a slot's plain word, so that halves of two writes don't match.
func scramble(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0x2545f4914f6cdd1d, 0x9e3779b97f4a7c15)
	return hi ^ lo
}
