package replay

// cache is an engine's KV cache: blocks, of which the least recently used make room.
// Those of requests that are worked on stay.
type cache struct {
	capacity int // blocks
	blocks   map[uint64]*block
	busy     int   // blocks in use
	idle     block // the list of those that nobody uses, the last used first
}

type block struct {
	key        uint64
	users      int
	next, prev *block
}

func newCache(capacity int) *cache {
	c := &cache{capacity: max(1, capacity), blocks: make(map[uint64]*block)}
	c.idle.next, c.idle.prev = &c.idle, &c.idle
	return c
}

// match returns how many leading blocks are there.
func (c *cache) match(keys []uint64) int {
	for i, k := range keys {
		if c.blocks[k] == nil {
			return i
		}
	}
	return len(keys)
}

// hold takes blocks into use; those that are not there are made, at the cost of idle
// ones. It returns false, and changes nothing, if there is no room.
func (c *cache) hold(keys []uint64) bool {
	more := 0
	for _, k := range keys {
		if b := c.blocks[k]; b == nil || b.users == 0 {
			more++
		}
	}
	if c.busy+more > c.capacity {
		return false
	}
	for _, k := range keys {
		if b := c.blocks[k]; b != nil {
			c.take(b)
		}
	}
	for _, k := range keys {
		if c.blocks[k] == nil {
			c.add(k)
		}
	}
	return true
}

func (c *cache) take(b *block) {
	if b.users == 0 {
		b.prev.next, b.next.prev = b.next, b.prev
		c.busy++
	}
	b.users++
}

// add makes a block in use.
func (c *cache) add(k uint64) {
	if len(c.blocks) >= c.capacity {
		old := c.idle.prev
		old.prev.next, old.next.prev = old.next, old.prev
		delete(c.blocks, old.key)
	}
	c.blocks[k] = &block{key: k, users: 1}
	c.busy++
}

// release gives blocks back. The end of a prompt is forgotten before its beginning.
func (c *cache) release(keys []uint64) {
	for i := len(keys) - 1; i >= 0; i-- {
		b := c.blocks[keys[i]]
		if b.users--; b.users > 0 {
			continue
		}
		c.busy--
		b.prev, b.next = &c.idle, c.idle.next
		b.next.prev, c.idle.next = b, b
	}
}

// visit is hold and release at once, of as much as there is room for.
func (c *cache) visit(keys []uint64) {
	keys = keys[:min(len(keys), c.capacity)]
	if c.hold(keys) {
		c.release(keys)
	}
}
