package blocks

import "sync"

// Most is how many blocks are followed of one engine. What comes beyond it is
// not taken in, and the engine's word counts as incomplete.
const Most = 1 << 19

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

// Names knows which blocks stand behind an engine's own names for them, and keeps a
// Target true to what the engine publishes. Engines name blocks by hashes of their own,
// which mean nothing to others. It is safe for concurrent use.
type Names struct {
	// Constant after NewNames.
	target Target

	// mu guards the fields below, and calls of target.
	mu     sync.Mutex
	known  Knowledge
	size   int // tokens in a block; 0: not known yet
	cached map[ID]block
	keys   map[Key]uint32 // by key: how many entries of cached have it
	charge charge         // of both maps
}

// NewNames returns the names of an engine that has published nothing yet.
func NewNames(target Target) *Names {
	return &Names{target: target, cached: map[ID]block{}, keys: map[Key]uint32{}}
}

// SetKnown sets how much is known. Nothing forgets all blocks.
func (n *Names) SetKnown(k Knowledge) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k == Nothing {
		n.forgetLocked()
	} else if n.known != k {
		n.known = k
		n.target.Know(n.known, n.size)
	}
}

// Forget forgets all blocks, and that any were known.
func (n *Names) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetLocked()
}

func (n *Names) forgetLocked() {
	n.known = Nothing
	n.emptyLocked()
}

func (n *Names) emptyLocked() {
	if n.charge.entries > 0 {
		n.cached, n.keys = map[ID]block{}, map[Key]uint32{}
		n.charge.free(nameBytes)
	}
	n.size = 0
	n.target.Know(n.known, 0)
	n.target.Clear()
}

// Tokens returns how many tokens the different blocks have that are known to be cached.
func (n *Names) Tokens() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.size * len(n.keys)
}

// Clear takes in that nothing is cached at a rank.
func (n *Names) Clear(rank int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.cached {
		if id.Rank == rank {
			n.dropLocked(id, true)
		}
	}
	if len(n.cached) == 0 {
		n.emptyLocked()
	}
}

// Store takes in blocks. It returns whether all could be: their parent may not be
// known, or there are too many.
func (n *Names) Store(s *Stored) bool {
	if s.Size <= 0 || len(s.Tokens) != s.Size*len(s.Hashes) || s.Extra != nil && len(s.Extra) != len(s.Hashes) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.size == 0 {
		n.size = s.Size
		n.target.Know(n.known, n.size)
	}
	if n.size != s.Size {
		return false
	}
	key := Root(s.Adapter)
	if !s.Root {
		parent, ok := n.cached[ID{s.Rank, s.Parent}]
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
		if !n.addLocked(ID{s.Rank, hash}, key) {
			return false
		}
	}
	return true
}

// addLocked records one block more of a name.
func (n *Names) addLocked(id ID, key Key) bool {
	was, ok := n.cached[id]
	if ok && was.key == key {
		was.n++
		n.cached[id] = was
		return true
	}
	if ok {
		n.dropLocked(id, true) // the engine gives the name to something else
	} else if len(n.cached) >= Most {
		return false
	}
	if !n.charge.grow(len(n.cached)+1, nameBytes) {
		return false
	}
	if n.keys[key] == 0 && !n.target.Add(key) {
		return false
	}
	n.cached[id] = block{key: key, n: 1}
	n.keys[key]++
	return true
}

// Remove takes in that a rank has evicted a block; it may have another one of the name.
func (n *Names) Remove(id ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropLocked(id, false)
}

// dropLocked forgets one block of a name, or all.
func (n *Names) dropLocked(id ID, all bool) {
	e, ok := n.cached[id]
	if !ok {
		return
	}
	if e.n > 1 && !all {
		e.n--
		n.cached[id] = e
		return
	}
	delete(n.cached, id)
	if n.keys[e.key]--; n.keys[e.key] > 0 {
		return
	}
	delete(n.keys, e.key)
	n.target.Drop(e.key)
}
