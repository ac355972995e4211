// Package blocks knows which blocks of tokens an inference engine's KV cache holds,
// by keys that mean the same to every program of the mesh.
//
// kvevents fills a Set from what an engine publishes; extproc cuts prompts into the
// same keys and looks them up. Its one rule: a key is made of all tokens up to its
// block's end and of nothing that one process knows alone, so that whoever computes
// it gets the same one.
package blocks

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// Most is how many blocks are followed of one engine. What comes beyond it is
// not taken in, and the engine's word counts as incomplete.
const Most = 1 << 19

// Key stands for all tokens of a prompt up to the end of a block, and for the LoRA
// adapter that they went through: 64 bits of a hash, never 0. Programs of different
// releases must agree on it.
type Key uint64

// Knowledge is how much of an engine's blocks is known.
type Knowledge uint32

const (
	// Nothing is known: the engine does not tell, or not now.
	Nothing Knowledge = iota
	// Parts are known: of what it held before we listened we have not heard.
	Parts
	// Whole is all that it holds.
	Whole
)

// Set is what an engine says, block by block, that its KV cache holds. Engines
// name blocks by hashes of their own, which mean nothing to others: here a block has
// the key of all tokens up to its end. Readers take no lock.
type Set struct {
	// Atomic.
	known atomic.Uint32 // Knowledge
	size  atomic.Int32  // tokens in a block; 0: not known yet
	table atomic.Pointer[blockTable]

	// mu guards the fields below.
	mu   sync.Mutex
	held map[ID]block
	keys map[Key]uint32 // by how many of held a key is that of
}

// ID is the engine's name for a block. Ranks are the engine's data-parallel
// parts, each with a cache of its own: what any of them holds counts.
type ID struct {
	Rank int
	Hash uint64
}

// block is what stands behind an ID.
type block struct {
	key Key
	n   uint32 // how many such blocks the engine holds
}

// Stored is a chain of blocks that an engine has stored.
type Stored struct {
	// Rank is who did, Hashes its names for the blocks.
	Rank   int
	Hashes []uint64
	// Parent is the block before them; Root: they are the first of a prompt.
	Parent uint64
	Root   bool
	// Tokens are all of theirs, Size of them in each.
	Tokens []uint32
	Size   int
	// Adapter is the LoRA adapter that they were made with; empty: none.
	Adapter string
	// Extra is what a block depends on beside tokens, by block, such as an image;
	// 0: nothing. nil: none of them does.
	Extra []uint64
}

// Root is the key that the first block of a prompt follows, by adapter.
func Root(adapter string) Key {
	return Key(mix(0, xxhash.Sum64String(adapter)) | 1)
}

// Append appends the keys of a prompt's blocks that an engine may find in its
// cache. At least one token is always worked on: a last block that is not followed
// by a token is no use.
func Append(dst []Key, root Key, tokens []uint32, size int) []Key {
	for size > 0 && len(tokens) > size {
		root = next(root, tokens[:size], 0)
		dst = append(dst, root)
		tokens = tokens[size:]
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

// Knowledge returns how much is known, and how many tokens a block has.
func (b *Set) Knowledge() (k Knowledge, size int) {
	return Knowledge(b.known.Load()), int(b.size.Load())
}

// SetKnown says how much is known. Nothing forgets all blocks.
func (b *Set) SetKnown(k Knowledge) {
	if k == Nothing {
		b.Forget()
		return
	}
	b.known.Store(uint32(k))
}

// Forget forgets all blocks, and that any were known.
func (b *Set) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known.Store(uint32(Nothing))
	b.emptyLocked()
}

func (b *Set) emptyLocked() {
	b.table.Store(nil)
	clear(b.held)
	clear(b.keys)
	b.size.Store(0)
}

// Clear says that a rank holds nothing.
func (b *Set) Clear(rank int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.held {
		if id.Rank == rank {
			b.dropLocked(id, true)
		}
	}
	if len(b.held) == 0 {
		b.emptyLocked()
	}
}

// Store takes in blocks. It returns whether all could be: their parent may not be
// known, or there are too many.
func (b *Set) Store(s *Stored) bool {
	if s.Size <= 0 || len(s.Tokens) != s.Size*len(s.Hashes) || s.Extra != nil && len(s.Extra) != len(s.Hashes) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held, b.keys = map[ID]block{}, map[Key]uint32{}
	}
	if !b.size.CompareAndSwap(0, int32(s.Size)) && int(b.size.Load()) != s.Size {
		return false
	}
	key := Root(s.Adapter)
	if !s.Root {
		parent, ok := b.held[ID{s.Rank, s.Parent}]
		if !ok {
			return false
		}
		key = parent.key
	}
	for i, hash := range s.Hashes {
		extra := uint64(0)
		if s.Extra != nil {
			extra = s.Extra[i]
		}
		key = next(key, s.Tokens[i*s.Size:(i+1)*s.Size], extra)
		if !b.addLocked(ID{s.Rank, hash}, key) {
			return false
		}
	}
	return true
}

// addLocked records one block more of a name.
func (b *Set) addLocked(id ID, key Key) bool {
	was, ok := b.held[id]
	if ok && was.key == key {
		was.n++
		b.held[id] = was
		return true
	}
	if ok {
		b.dropLocked(id, true) // the engine gives the name to something else
	} else if len(b.held) >= Most {
		return false
	}
	if b.keys[key] == 0 && !b.putLocked(key) {
		return false
	}
	b.held[id] = block{key: key, n: 1}
	b.keys[key]++
	return true
}

// putLocked lets readers find a new key; a table that is full makes room for twice
// as many. It returns false if that does not help: somebody has made keys that collide.
func (b *Set) putLocked(key Key) bool {
	if t := b.table.Load(); t != nil && t.put(key) {
		return true
	}
	n := max(minBuckets, len(b.keys)/bucketWays*2)
	for range maxDoublings {
		if t := b.rebuiltLocked(n); t != nil && t.put(key) {
			b.table.Store(t)
			return true
		}
		n *= 2
	}
	return false
}

// rebuiltLocked returns a table of all keys, nil if so many buckets are too few.
func (b *Set) rebuiltLocked(buckets int) *blockTable {
	t := newBlockTable(buckets)
	for key := range b.keys {
		if !t.put(key) {
			return nil
		}
	}
	return t
}

// Remove says that a rank has evicted a block; it may hold another one of the name.
func (b *Set) Remove(id ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked(id, false)
}

// dropLocked forgets one block of a name, or all.
func (b *Set) dropLocked(id ID, all bool) {
	e, ok := b.held[id]
	if !ok {
		return
	}
	if e.n > 1 && !all {
		e.n--
		b.held[id] = e
		return
	}
	delete(b.held, id)
	if b.keys[e.key]--; b.keys[e.key] > 0 {
		return
	}
	delete(b.keys, e.key)
	if t := b.table.Load(); t != nil {
		t.drop(e.key)
	}
}

// Count returns how many blocks of a prompt, from its first on, are cached.
func (b *Set) Count(prompt []Key) int {
	t := b.table.Load()
	if t == nil {
		return 0
	}
	for i, k := range prompt {
		if !t.has(k) {
			return i
		}
	}
	return len(prompt)
}

// Len is how many different blocks are cached.
func (b *Set) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.keys)
}

// A bucket is a line of the CPU's cache. Each key has two that it may be in: so
// nearly all slots are used before a table must grow.
const (
	bucketWays = 8
	minBuckets = 16
	// maxDoublings is how often a table that is full is made larger at once.
	maxDoublings = 3
)

// blockTable is a set of keys for one writer and many readers.
type blockTable struct {
	buckets [][bucketWays]atomic.Uint64
	shift   uint8
}

// newBlockTable returns a table of at least so many buckets.
func newBlockTable(buckets int) *blockTable {
	log := bits.Len(uint(buckets - 1))
	return &blockTable{buckets: make([][bucketWays]atomic.Uint64, 1<<log), shift: uint8(64 - log)}
}

// homes are the buckets that a key may be in.
func (t *blockTable) homes(k Key) (a, b *[bucketWays]atomic.Uint64) {
	return &t.buckets[uint64(k)*0x9e3779b97f4a7c15>>(t.shift&63)], &t.buckets[uint64(k)*0xd6e8feb86659fd93>>(t.shift&63)]
}

func (t *blockTable) has(k Key) bool {
	a, b := t.homes(k)
	return slotOf(a, uint64(k)) != nil || slotOf(b, uint64(k)) != nil
}

// slotOf returns the slot with a word, or nil; a free one has 0.
func slotOf(bucket *[bucketWays]atomic.Uint64, word uint64) *atomic.Uint64 {
	for i := range bucket {
		if bucket[i].Load() == word {
			return &bucket[i]
		}
	}
	return nil
}

// put adds a key that is not there, in the emptier bucket. It returns false if both
// are full.
func (t *blockTable) put(k Key) bool {
	a, b := t.homes(k)
	if filled(b) < filled(a) {
		a = b
	}
	free := slotOf(a, 0)
	if free == nil {
		return false
	}
	free.Store(uint64(k))
	return true
}

func filled(bucket *[bucketWays]atomic.Uint64) (n int) {
	for i := range bucket {
		if bucket[i].Load() != 0 {
			n++
		}
	}
	return n
}

func (t *blockTable) drop(k Key) {
	a, b := t.homes(k)
	if s := slotOf(a, uint64(k)); s != nil {
		s.Store(0)
	} else if s := slotOf(b, uint64(k)); s != nil {
		s.Store(0)
	}
}
