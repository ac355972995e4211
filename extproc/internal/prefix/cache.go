package prefix

import (
	"sync/atomic"
)

// Generations are the ages of a cache's content.
const (
	// ring is how many are kept apart.
	ring = 64
	// perCapacity is into how many of them a full cache falls.
	perCapacity = 16
)

// Cache follows the content of one engine's KV cache from its start on: which of
// what was put there is evicted again. It never forgets by itself what a newer
// generation used; the least recently used goes first, as in the engines.
//
// Time is counted in generations. Each holds a share of the capacity; when those
// younger than one fill the cache, it and the older ones are gone. That takes one
// counter for each generation, and no list of what is cached. If the engine reports
// what it has, Reported and Dropped take that in, and nothing is estimated here.
type Cache struct {
	// Constant after NewCache.
	id uint32

	// Atomic.
	capacity atomic.Int64  // tokens; 0: not known, nothing is evicted
	gen      atomic.Uint32 // the open generation
	oldest   atomic.Uint32 // generations before it are gone
	reported atomic.Bool   // whether the engine reports
	full     atomic.Bool   // whether an engine that reports has dropped something
	tokens   [ring]atomic.Int64
	sum      atomic.Int64        // of tokens
	closed   [ring]atomic.Uint32 // when generations were no longer open, Unix seconds; 0: they are
	// What was used again of the older half, and what was evicted, in tokens.
	again, gone atomic.Int64
}

// NewCache returns the empty cache of an engine that has room for so many tokens; 0: not
// known. Its id is not 0, and different from that of others in use.
func NewCache(id uint32, capacity int64) *Cache {
	c := &Cache{id: id & cacheMask}
	c.gen.Store(1)
	c.oldest.Store(1)
	c.capacity.Store(capacity)
	return c
}

// ID returns the number by which matches name the cache.
func (c *Cache) ID() uint32 { return c.id }

// Match is a match of so many tokens that are known to be there now.
func (c *Cache) Match(tokens int) Match {
	return Match{Cache: c.id, Gen: c.gen.Load() & genMask, Tokens: uint32(tokens)}
}

// Resize says how many tokens the cache has room for; 0: not known.
func (c *Cache) Resize(capacity int64) { c.capacity.Store(capacity) }

// Has reports whether what m says is still there.
func (c *Cache) Has(m Match) bool {
	return m.Cache == c.id && !before(m.Gen, c.oldest.Load())
}

// before compares generations, which go round.
func before(a, b uint32) bool { return (a-b)&genMask > genMask/2 }

// use moves tokens to the open generation. was is where they were before; ok is
// false if they are new. It returns the open generation.
func (c *Cache) use(tokens int64, was uint32, ok bool, now int64) uint32 {
	gen := c.gen.Load()
	if c.reported.Load() || tokens <= 0 {
		return gen
	}
	if ok {
		if was == gen&genMask {
			return gen
		}
		c.tokens[was%ring].Add(-tokens)
		if (gen-was)&genMask > perCapacity/2 {
			c.again.Add(tokens)
		}
	}
	if !ok {
		c.sum.Add(tokens)
	}
	if c.tokens[gen%ring].Add(tokens) > c.capacity.Load()/perCapacity {
		c.next(gen, now)
	}
	return gen
}

// next opens a generation after gen, and finds out which are gone.
func (c *Cache) next(gen uint32, now int64) {
	capacity := c.capacity.Load()
	if capacity == 0 || !c.gen.CompareAndSwap(gen, gen+1) {
		return
	}
	c.closed[gen%ring].Store(uint32(now))
	c.closed[(gen+1)%ring].Store(0)
	first, sum := gen+1, int64(0)
	for oldest := c.oldest.Load(); first != oldest && gen+1-first < ring-2; first-- {
		sum += max(0, c.tokens[(first-1)%ring].Load())
		if sum > capacity {
			break
		}
	}
	for g := c.oldest.Load(); before(g, first); g++ {
		n := c.tokens[g%ring].Swap(0)
		c.sum.Add(-n)
		c.gone.Add(max(0, n))
	}
	c.oldest.Store(first)
}

// Used returns the share of the capacity that is taken, 0 to 1, and 0 if the
// capacity is not known. An engine that reports has a full cache once it has dropped
// something.
func (c *Cache) Used() float64 {
	if c.reported.Load() {
		if c.full.Load() {
			return 1
		}
		return 0
	}
	capacity := c.capacity.Load()
	if capacity == 0 {
		return 0
	}
	return max(0, min(1, float64(c.sum.Load())/float64(capacity)))
}

// Regret returns how likely it is that the next tokens to be evicted would have
// been used again, 0 to 1: the share of those that grew old and were, decaying.
func (c *Cache) Regret(first float64) float64 {
	const prior = 1 << 12 // tokens for which the guess stands
	again, gone := float64(c.again.Load()), float64(c.gone.Load())
	return (again + first*prior) / (again + gone + prior)
}

// Idle returns for how many seconds what is evicted next was not used, at a time in
// Unix seconds; 0: that is not known, or nothing is evicted yet.
func (c *Cache) Idle(now int64) float64 {
	if at := c.closed[c.oldest.Load()%ring].Load(); at != 0 {
		return float64(max(1, now-int64(at)))
	}
	return 0
}

// Reported says that the engine reports what it has, now in generation gen.
func (c *Cache) Reported(gen uint32, now int64) {
	c.reported.Store(true)
	for {
		was := c.gen.Load()
		if was == gen || before(gen, was) {
			return
		}
		if c.gen.CompareAndSwap(was, gen) {
			for ; was != gen && gen-was < ring; was++ {
				c.closed[was%ring].Store(uint32(now))
			}
			c.closed[gen%ring].Store(0)
			return
		}
	}
}

// Dropped says that the engine has nothing cached any more that was last used in gen or
// before.
func (c *Cache) Dropped(gen uint32) {
	c.full.Store(true)
	for {
		now := c.oldest.Load()
		if before(gen, now) || c.oldest.CompareAndSwap(now, gen+1) {
			return
		}
	}
}

// Clear says that the cache is empty.
func (c *Cache) Clear() {
	gen := c.gen.Add(1)
	c.oldest.Store(gen)
	c.full.Store(false)
	for i := range c.tokens {
		c.sum.Add(-c.tokens[i].Swap(0))
	}
}
