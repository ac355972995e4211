package token

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// maxCached is the longest word the cache holds, in bytes.
const maxCached = 15

// cacheSlots bounds the cache: 16 bytes each, 1 MiB in all. A word displaces
// the one that has its slot.
const cacheSlots = 1 << 16

// cache remembers how many tokens short words have. Reads and writes are
// lock-free: a slot is two words, the first scrambled by the second, so that
// halves of two different writes never look like an entry.
type cache struct {
	seed  uint64
	slots [cacheSlots]slot
}

type slot struct{ scrambled, value atomic.Uint64 }

func newCache() *cache {
	return &cache{seed: rand.Uint64() | 1}
}

// key is a word: its bytes, and in the top byte of high its length. The lowest
// four bits of that byte are free for the count.
type key struct{ low, high uint64 }

// keyOf packs text[:n], n ≤ maxCached.
func keyOf(text []byte, n int) (k key) {
	if len(text) >= 16 {
		k.low = binary.LittleEndian.Uint64(text)
		k.high = binary.LittleEndian.Uint64(text[8:])
	} else {
		var buf [16]byte
		copy(buf[:], text)
		k.low = binary.LittleEndian.Uint64(buf[:])
		k.high = binary.LittleEndian.Uint64(buf[8:])
	}
	m := &masks[n&15]
	k.low &= m.low
	k.high = k.high&m.high | uint64(n)<<60
	return k
}

// masks are by length what a word has of its two words.
var masks = func() (all [16]key) {
	for n := range all {
		all[n].low = 1<<(8*min(n, 8)) - 1
		all[n].high = 1<<(8*max(n-8, 0)) - 1
	}
	return all
}()

// countShift is where the count stands in a slot's plain word.
const countShift = 56

func (c *cache) slot(k key) *slot {
	hi, lo := bits.Mul64(k.low^c.seed, k.high^0x9e3779b97f4a7c15)
	return &c.slots[(hi^lo)>>48&(cacheSlots-1)]
}

func (c *cache) mix(x uint64) uint64 {
	hi, lo := bits.Mul64(x^c.seed, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// get returns the tokens of a word, 0 if it isn't there.
func (c *cache) get(k key) int {
	s := c.slot(k)
	value := s.value.Load()
	if value&^(15<<countShift) != k.high || s.scrambled.Load()^c.mix(value) != k.low {
		return 0
	}
	return int(value >> countShift & 15)
}

// put remembers a word of 1 to 15 tokens.
func (c *cache) put(k key, tokens int) {
	if tokens < 1 || tokens > 15 {
		return
	}
	s := c.slot(k)
	value := k.high | uint64(tokens)<<countShift
	s.value.Store(value)
	s.scrambled.Store(k.low ^ c.mix(value))
}
