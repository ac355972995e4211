package prefix

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/extproc/internal/session"
)

// ways is how many entries share a set.
const ways = 8

// Index remembers a bounded number of prefixes, each for a bounded idle time.
//
// It is built like the cache of a CPU: a key belongs to one set of eight entries,
// and within the set the one unused the longest makes room. Every word is atomic
// and each set has a version, so that readers take no lock: they read again if a
// writer was at it. Writers of one set wait for each other, which takes some tens
// of nanoseconds. There are no pointers for the garbage collector to follow, and
// memory is touched only as entries come.
type Index struct {
	// Constant after New.
	sets []set
	idle int64 // seconds
	base time.Time

	// Atomic.
	evicted atomic.Uint64
}

type set struct {
	version atomic.Uint32 // odd while a writer is at it
	_       uint32
	entries [ways]slot
}

// matchesKept is how many caches are remembered of one prefix, the last used
// first.
const matchesKept = 4

// slot is an entry in words.
type slot struct {
	key     atomic.Uint64
	meta    atomic.Uint64 // seconds since base, from 1, and in the low bits continuations
	matches [matchesKept]atomic.Uint64
}

// used is when the entry was last used, in seconds since base.
func (s *slot) used() int64 { return int64(s.meta.Load() >> childBits) }

// entry is a slot as it was read.
type entry struct {
	children uint16
	matches  [matchesKept]Match
}

// New returns an index of at most `most` entries, in whole sets, each kept for idle
// after its last use.
func New(most int, idle time.Duration) *Index {
	n := max(1, most/ways)
	return &Index{sets: make([]set, n), idle: max(1, int64(idle/time.Second)), base: time.Now()}
}

// Resized returns an index of another size that knows what x does. Of what is used
// meanwhile it may know nothing. Where there is less room, what was used last stays.
func (x *Index) Resized(most int, idle time.Duration, now time.Time) *Index {
	y := New(most, idle)
	y.base = x.base
	clock := y.clock(now)
	for i := range x.sets {
		y.adoptSet(&x.sets[i], clock)
	}
	return y
}

// adoptSet takes over what another index has in a set. Its writers wait for that, so
// that no entry takes another's slot half-way.
func (x *Index) adoptSet(from *set, clock int64) {
	from.lock()
	defer from.version.Add(1)
	for i := range from.entries {
		if s := &from.entries[i]; s.key.Load() != 0 && clock-s.used() <= x.idle {
			x.adopt(s, clock)
		}
	}
}

// adopt takes over an entry of another index, unless all in its set are newer.
func (x *Index) adopt(from *slot, clock int64) {
	k := session.Key(from.key.Load())
	set := x.set(k)
	set.lock()
	defer set.version.Add(1)
	newer := 0
	for i := range set.entries {
		if set.entries[i].used() > from.used() {
			newer++
		}
	}
	if newer == ways {
		return
	}
	to := x.slot(set, k, clock)
	to.meta.Store(from.meta.Load())
	for i := range from.matches {
		to.matches[i].Store(from.matches[i].Load())
	}
}

// Find looks up all prefixes of a prompt, given shortest first.
func (x *Index) Find(chain []Link, now time.Time, f *Found) {
	f.Matches, f.Shared, f.By = f.matches[:0], 0, 0
	clock := x.clock(now)
	for i := len(chain) - 1; i >= 0 && len(f.Matches) < maxMatches; i-- {
		e, ok := x.get(chain[i].Key, clock)
		if !ok {
			continue
		}
		if f.Shared == 0 {
			if n := continuations(e.children); n >= sharedBy {
				f.Shared, f.By = int(chain[i].Tokens), n
			}
		}
		for _, p := range e.matches {
			if p.Cache != 0 {
				f.Add(p)
			}
		}
	}
}

// Add takes a match in, unless as much was used there as lately.
func (f *Found) Add(m Match) {
	for i := range f.Matches {
		if old := &f.Matches[i]; old.Cache == m.Cache && old.Tokens >= m.Tokens && !before(old.Gen, m.Gen) {
			return
		}
	}
	if len(f.Matches) < maxMatches {
		f.Matches = append(f.Matches, m)
	}
}

// Report takes in what an engine says that it has of the prompt. If that is all that it
// has, what was estimated of it does not count. When there are too many matches, the
// shortest makes room.
func (f *Found) Report(m Match, whole bool) {
	if whole {
		f.Matches = slices.DeleteFunc(f.Matches, func(old Match) bool { return old.Cache == m.Cache })
	}
	if m.Tokens == 0 {
		return
	}
	if len(f.Matches) == maxMatches {
		least := 0
		for i := range f.Matches {
			if f.Matches[i].Tokens < f.Matches[least].Tokens {
				least = i
			}
		}
		if f.Matches[least].Tokens >= m.Tokens {
			return
		}
		f.Matches = slices.Delete(f.Matches, least, least+1)
	}
	f.Add(m)
}

// Get returns the last match recorded under a key.
func (x *Index) Get(k session.Key, now time.Time) (Match, bool) {
	e, ok := x.get(k, x.clock(now))
	return e.matches[0], ok && e.matches[0].Cache != 0
}

// get reads the entry of k.
func (x *Index) get(k session.Key, clock int64) (entry, bool) {
	set := x.set(k)
	for range 8 {
		v := set.version.Load()
		if v&1 != 0 {
			continue
		}
		e, used, ok := set.read(k)
		if set.version.Load() != v {
			continue
		}
		return e, ok && clock-used <= x.idle
	}
	return entry{}, false // writers keep it busy: a miss does no harm
}

// read reads the entry of k, whole only if the set's version stays the same.
func (t *set) read(k session.Key) (e entry, used int64, ok bool) {
	for i := range t.entries {
		s := &t.entries[i]
		if s.key.Load() != uint64(k) {
			continue
		}
		meta := s.meta.Load()
		e.children = uint16(meta)
		for j := range s.matches {
			e.matches[j] = unpack(s.matches[j].Load())
		}
		return e, int64(meta >> childBits), true
	}
	return entry{}, 0, false
}

// Placement is what is cached somewhere since a request was sent there, or answered.
type Placement struct {
	// Chain is the prompt's prefixes, shortest first; of one that was answered the last
	// counts.
	Chain []Link
	// Name is the client's for the conversation; 0: it has none.
	Name session.Key
	// Tokens are cached of the conversation.
	Tokens uint32
	// Answered is whether it was answered, Fresh how many of Tokens are recorded with that.
	Answered bool
	Fresh    uint32
}

// Record records a placement at c.
func (x *Index) Record(p Placement, c *Cache, now time.Time) {
	if n := len(p.Chain); !p.Answered {
		x.Use(p.Chain, c, now)
	} else if n > 0 {
		x.Answered(p.Chain[n-1].Key, c, p.Tokens, p.Fresh, now)
	}
	if p.Name != 0 {
		x.Name(p.Name, c, p.Tokens, now)
	}
}

// Use records that a prompt with these prefixes, shortest first, is worked on at
// c: all of them are cached there.
//
// A prompt is not known by all of its prefixes, and another turn may be known by
// others. So tokens are counted from one prefix that was there to the next; only
// what lies behind the last of them is new.
func (x *Index) Use(chain []Link, c *Cache, now time.Time) {
	clock := x.clock(now)
	var last Match       // that was there
	counted := uint32(0) // tokens
	for i, l := range chain {
		var next uint16
		if i+1 < len(chain) {
			next = child(chain[i+1].Key)
		}
		if was, ok := x.put(l.Key, c, use{tokens: l.Tokens, from: counted, next: next}, clock); ok {
			last, counted = was, max(counted, l.Tokens)
		}
	}
	if n := len(chain); n > 0 {
		end := chain[n-1].Tokens
		answered := min(last.Tokens, end)
		c.use(int64(answered)-int64(counted), last.Gen, true, now.Unix())
		c.use(int64(end)-int64(max(counted, answered)), 0, false, now.Unix())
	}
}

// Answered records that behind the prompt k an answer is cached at c, so that these
// are so many tokens in all, fresh of which are not recorded yet.
func (x *Index) Answered(k session.Key, c *Cache, tokens, fresh uint32, now time.Time) {
	x.put(k, c, use{tokens: tokens, from: tokens, fresh: int64(fresh)}, x.clock(now))
}

// Report records what an engine reports: that these prefixes were last used in the
// generation gen of its cache. Those of no tokens are not there any more.
func (x *Index) Report(c *Cache, gen uint32, links []Link, now time.Time) {
	c.Reported(gen, now.Unix())
	clock := x.clock(now)
	for _, l := range links {
		if l.Tokens == 0 {
			x.Drop(l.Key, c)
			continue
		}
		x.reportOne(l, c, gen, clock)
	}
}

// reportOne records one prefix that an engine reports.
func (x *Index) reportOne(l Link, c *Cache, gen uint32, clock int64) {
	set := x.set(l.Key)
	set.lock()
	defer set.version.Add(1)
	s := x.slot(set, l.Key, clock)
	s.meta.Store(uint64(clock)<<childBits | s.meta.Load()&(1<<childBits-1))
	if was, ok := s.match(c); !ok || !before(gen, was.Gen) {
		s.remember(Match{Cache: c.id, Gen: gen & genMask, Tokens: l.Tokens})
	}
}

// Name records under a client's name for a session that so many tokens are cached
// at c, which other entries count.
func (x *Index) Name(k session.Key, c *Cache, tokens uint32, now time.Time) {
	x.put(k, c, use{tokens: tokens, from: tokens}, x.clock(now))
}

// use is what is recorded under a key: its length; how many of its tokens are counted
// under shorter ones, how many came to them now; the continuation.
type use struct {
	tokens, from uint32
	fresh        int64
	next         uint16
}

// put records a use of k at c. It returns what was there before, if anything was.
func (x *Index) put(k session.Key, c *Cache, u use, clock int64) (was Match, ok bool) {
	set := x.set(k)
	set.lock()
	defer set.version.Add(1)
	s := x.slot(set, k, clock)
	s.meta.Store(uint64(clock)<<childBits | s.meta.Load()&(1<<childBits-1) | uint64(u.next))
	was, ok = s.match(c)
	gen := c.gen.Load()
	if ok {
		gen = c.use(int64(u.tokens)-int64(u.from), was.Gen, true, x.unix(clock))
	}
	if u.fresh > 0 {
		gen = c.use(u.fresh, 0, false, x.unix(clock))
	}
	s.remember(Match{Cache: c.id, Gen: gen, Tokens: max(u.tokens, was.Tokens)}) // an answer may be cached behind it
	return was, ok
}

// match returns what is known of the entry at c, if that is still there.
func (s *slot) match(c *Cache) (Match, bool) {
	for j := range s.matches {
		if m := unpack(s.matches[j].Load()); c.Has(m) {
			return m, true
		}
	}
	return Match{}, false
}

// remember puts m first among the matches.
func (s *slot) remember(m Match) {
	carry := m.pack()
	for j := range s.matches {
		old := s.matches[j].Swap(carry)
		if old == 0 || unpack(old).Cache == m.Cache {
			return
		}
		carry = old
	}
}

// Drop records that k is not cached at c any more.
func (x *Index) Drop(k session.Key, c *Cache) {
	set := x.set(k)
	set.lock()
	defer set.version.Add(1)
	for i := range set.entries {
		s := &set.entries[i]
		if s.key.Load() != uint64(k) {
			continue
		}
		n := 0
		for j := range s.matches {
			w := s.matches[j].Load()
			s.matches[j].Store(0)
			if w != 0 && unpack(w).Cache != c.id {
				s.matches[n].Store(w)
				n++
			}
		}
		return
	}
}

// slot returns the entry of k, else an empty one in place of another that was
// unused the longest. The set is locked.
func (x *Index) slot(t *set, k session.Key, clock int64) *slot {
	var victim *slot
	for i := range t.entries {
		s := &t.entries[i]
		if s.key.Load() == uint64(k) && clock-s.used() <= x.idle {
			return s
		}
		if s.key.Load() == uint64(k) {
			victim = s
			break
		}
		if victim == nil || s.used() < victim.used() {
			victim = s
		}
	}
	if victim.key.Load() != 0 && clock-victim.used() <= x.idle {
		x.evicted.Add(1)
	}
	for j := range victim.matches {
		victim.matches[j].Store(0)
	}
	victim.meta.Store(0)
	victim.key.Store(uint64(k))
	return victim
}

// lock makes the version odd.
func (t *set) lock() {
	for {
		v := t.version.Load()
		if v&1 == 0 && t.version.CompareAndSwap(v, v+1) {
			return
		}
	}
}

// set returns the set that k belongs to.
func (x *Index) set(k session.Key) *set {
	i, _ := bits.Mul64(uint64(k), uint64(len(x.sets)))
	return &x.sets[i]
}

// unix is the clock's time in Unix seconds.
func (x *Index) unix(clock int64) int64 { return x.base.Unix() + clock - 1 }

func (x *Index) clock(now time.Time) int64 {
	return int64(now.Sub(x.base)/time.Second) + 1
}

// Len counts the entries that are not idle for too long. It walks over all of
// them: for metrics only.
func (x *Index) Len(now time.Time) int {
	n, clock := 0, x.clock(now)
	for i := range x.sets {
		for j := range x.sets[i].entries {
			s := &x.sets[i].entries[j]
			if s.key.Load() != 0 && clock-s.used() <= x.idle {
				n++
			}
		}
	}
	return n
}

// Bytes is what the entries take of memory when all are used.
func (x *Index) Bytes() int64 { return int64(len(x.sets)) * setBytes }

// setBytes is the size of a set.
const setBytes = 8 + ways*8*(2+matchesKept)

// Evicted counts the entries that made room before their idle time was over.
func (x *Index) Evicted() uint64 { return x.evicted.Load() }
