package prefix

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/session"
)

// tape is bytes that tests take their decisions from: a fuzzer's, or random ones.
type tape []byte

// next returns the next byte, 0 at the end.
func (s *tape) next() int {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return int(b)
}

func randomTape(seed uint64, n int) tape {
	r := rand.New(rand.NewPCG(seed, 77))
	s := make(tape, n)
	for i := range s {
		s[i] = byte(r.Uint32())
	}
	return s
}

// library is the naive twin of an Index without bounds: a map of lists.
type library struct {
	idle  int64
	books map[session.Key]*book
}

// book is what is known of one beginning.
type book struct {
	used     int64
	children map[uint64]bool // by the bit that stands for a continuation
	places   []Match         // the last used first
}

// open returns the book of k, an empty one if it is not there any more.
func (l *library) open(k session.Key, now int64) *book {
	b := l.books[k]
	if b == nil || now-b.used > l.idle {
		b = &book{children: map[uint64]bool{}}
		l.books[k] = b
	}
	b.used = now
	return b
}

// note puts a place first and forgets what was known of the same cache.
func (b *book) note(p Match) {
	b.places = slices.DeleteFunc(b.places, func(q Match) bool { return q.Cache == p.Cache })
	b.places = slices.Insert(b.places, 0, p)
	b.places = b.places[:min(len(b.places), matchesKept)]
}

// at returns what is still there of the beginning at c.
func (b *book) at(c *Cache) (Match, bool) {
	for _, p := range b.places {
		if c.Has(p) {
			return p, true
		}
	}
	return Match{}, false
}

func (l *library) put(k session.Key, c *Cache, tokens uint32, now int64) *book {
	b := l.open(k, now)
	was, _ := b.at(c)
	b.note(Match{Cache: c.id, Gen: c.gen.Load() & genMask, Tokens: max(tokens, was.Tokens)})
	return b
}

func (l *library) use(chain []Link, c *Cache, now int64) {
	for i, k := range chain {
		b := l.put(k.Key, c, k.Tokens, now)
		if i+1 < len(chain) {
			b.children[uint64(chain[i+1].Key)>>32%childBits] = true
		}
	}
}

func (l *library) report(c *Cache, gen uint32, links []Link, now int64) {
	for _, k := range links {
		if k.Tokens == 0 {
			l.drop(k.Key, c)
			continue
		}
		b := l.open(k.Key, now)
		if was, ok := b.at(c); !ok || !before(gen, was.Gen) {
			b.note(Match{Cache: c.id, Gen: gen, Tokens: k.Tokens})
		}
	}
}

func (l *library) drop(k session.Key, c *Cache) {
	if b := l.books[k]; b != nil {
		b.places = slices.DeleteFunc(b.places, func(p Match) bool { return p.Cache == c.id })
	}
}

// find is what Find must find.
func (l *library) find(chain []Link, now int64) (places []Match, shared int) {
	for _, k := range slices.Backward(chain) {
		b := l.books[k.Key]
		if b == nil || now-b.used > l.idle || len(places) == maxMatches {
			continue
		}
		if shared == 0 && continuations(uint16(1<<len(b.children)-1)) >= sharedBy {
			shared = int(k.Tokens)
		}
		for _, p := range b.places {
			known := slices.ContainsFunc(places, func(q Match) bool {
				return q.Cache == p.Cache && q.Tokens >= p.Tokens && !before(q.Gen, p.Gen)
			})
			if !known && len(places) < maxMatches {
				places = append(places, p)
			}
		}
	}
	return places, shared
}

// lately returns the keys that were used after all but a few others: n of them at
// most. An index of one set of n has those at least.
func (l *library) lately(n int) (keys []session.Key) {
	for k, b := range l.books {
		younger := 0
		for _, o := range l.books {
			if o.used >= b.used {
				younger++
			}
		}
		if younger <= n {
			keys = append(keys, k)
		}
	}
	return keys
}

// reading is an Index of a size with its twin. Their caches report what they have or
// hold everything: what a Cache works out itself has a twin of its own.
type reading struct {
	t      *testing.T
	x      *Index
	twin   library
	now    time.Time
	caches []*Cache
	most   int
	roomy  bool // whether the index has room for everything
}

// idle is how long the indexes of these tests remember.
const idle = 30 * time.Second

func newReading(t *testing.T, most int, roomy bool) *reading {
	r := &reading{t: t, x: newIndex(most, idle), most: most, now: epoch, roomy: roomy}
	r.twin = library{idle: int64(idle / time.Second), books: map[session.Key]*book{}}
	for i := range uint32(6) {
		r.caches = append(r.caches, NewCache(i+1, 0))
	}
	return r
}

// chain is one of a few hundred prompts that begin alike.
func (r *reading) chain(s *tape) []Link {
	blocks := make([]uint32, 1+s.next()%6)
	for i := range blocks {
		blocks[i] = uint32(s.next() % (3 + 5*i%7))
	}
	return prompt(10, blocks...)
}

func (r *reading) step(s *tape) {
	r.now = r.now.Add(time.Duration(s.next()%40) * 100 * time.Millisecond)
	clock := r.x.clock(r.now)
	op, c, chain := s.next(), r.caches[s.next()%len(r.caches)], r.chain(s)
	last := chain[len(chain)-1]
	switch op % 32 {
	default:
		r.x.Use(chain, c, r.now)
		r.twin.use(chain, c, clock)
	case 0, 1, 2:
		n := uint32(s.next() % 64)
		r.x.Answered(last.Key, c, last.Tokens+n, n, r.now)
		r.twin.put(last.Key, c, last.Tokens+n, clock)
	case 3, 4, 5:
		r.x.Name(last.Key, c, last.Tokens, r.now)
		r.twin.put(last.Key, c, last.Tokens, clock)
	case 6, 7, 8:
		r.x.Drop(last.Key, c)
		r.twin.drop(last.Key, c)
	case 9, 10, 11:
		gen := c.gen.Load() + uint32(s.next()%2)
		if r.roomy { // a report may be late; what it changes depends on what was evicted
			gen -= uint32(s.next() % 2)
		}
		chain[0].Tokens *= uint32(s.next() % 2)
		r.x.Report(c, gen, chain, r.now)
		r.twin.report(c, gen, chain, clock)
	case 12, 13, 14:
		c.Dropped(c.gen.Load() - 1 - uint32(s.next()%2))
	case 15:
		c.Clear()
	case 16:
		r.x = r.x.Resized(r.most, idle, r.now)
	}
	r.compare(r.chain(s), clock)
}

// compare asks both for a prompt. An index that is too small must know nothing else,
// and what was used last of all.
func (r *reading) compare(chain []Link, clock int64) {
	var f Found
	r.x.Find(chain, r.now, &f)
	places, shared := r.twin.find(chain, clock)
	if r.roomy {
		if diff := cmp.Diff(places, append([]Match(nil), f.Matches...)); diff != "" || f.Shared != shared {
			r.t.Fatalf("Find() shares %d, the twin %d (-twin +index):\n%s", f.Shared, shared, diff)
		}
		if n, want := r.x.Len(r.now), r.twin.len(clock); n != want {
			r.t.Fatalf("Len() = %d, want %d", n, want)
		}
		return
	}
	for _, k := range chain {
		p, ok := r.x.Get(k.Key, r.now)
		known := func(q Match) bool { return q.Cache == p.Cache && q.Gen == p.Gen && q.Tokens >= p.Tokens }
		if b := r.twin.books[k.Key]; ok && (b == nil || !slices.ContainsFunc(b.places, known)) {
			r.t.Fatalf("Get() = %+v, the twin has never heard of it", p)
		}
	}
	for _, k := range r.twin.lately(ways) {
		if _, ok := r.x.get(k, clock); !ok && clock-r.twin.books[k].used <= r.twin.idle {
			r.t.Fatalf("a beginning is gone that was used lately")
		}
	}
}

func (l *library) len(now int64) (n int) {
	for _, b := range l.books {
		if now-b.used <= l.idle {
			n++
		}
	}
	return n
}

func readAll(t *testing.T, s tape) {
	for _, r := range []*reading{newReading(t, 1<<14, true), newReading(t, ways, false)} {
		for rest := s; len(rest) > 0; {
			r.step(&rest)
		}
	}
}

// TestIndexAgainstItsTwin holds the index to a map of lists.
func TestIndexAgainstItsTwin(t *testing.T) {
	for seed := range uint64(8) {
		readAll(t, randomTape(seed, 3000))
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(randomTape(1, 200)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1<<12 {
			readAll(t, b)
		}
	})
}

// ledger is the naive twin of a Cache that works out itself what is evicted: the
// tokens of all generations that ever were.
type ledger struct {
	capacity    int64
	gen, oldest uint32
	tokens      map[uint32]int64
	// What was used again of the older half, and what was evicted.
	again, gone int64
}

func (h *ledger) use(tokens int64, was uint32, ok bool) {
	if tokens <= 0 || ok && was == h.gen {
		return
	}
	if ok {
		h.tokens[was] -= tokens
	}
	if ok && h.gen-was > perCapacity/2 {
		h.again += tokens
	}
	h.tokens[h.gen] += tokens
	if h.capacity == 0 || h.tokens[h.gen] <= h.capacity/perCapacity {
		return
	}
	h.gen++
	for h.oldest < h.gen && (h.since(h.oldest) > h.capacity || h.gen-h.oldest > ring-2) {
		h.gone += h.tokens[h.oldest]
		delete(h.tokens, h.oldest)
		h.oldest++
	}
}

// since adds up what was used last in a generation or in a newer one.
func (h *ledger) since(gen uint32) (sum int64) {
	for g := gen; g < h.gen; g++ {
		sum += max(0, h.tokens[g])
	}
	return sum
}

func (h *ledger) clear() {
	h.gen++
	h.oldest = h.gen
	clear(h.tokens)
}

// keep drives a Cache and its twin, from the generation on that the tape says: they
// go round after a million.
func keep(t *testing.T, s tape) {
	h := &ledger{capacity: 1600, gen: 1, oldest: 1, tokens: map[uint32]int64{}}
	c := NewCache(9, h.capacity)
	how := s.next()
	if how%2 == 1 {
		h.gen, h.oldest = genMask-20, genMask-20
		c.gen.Store(h.gen)
		c.oldest.Store(h.oldest)
	}
	again := 30 + how/2%4*70 // of 256 steps: some of what is there is used again
	for len(s) > 0 {
		switch op := s.next(); {
		case op == 255:
			c.Clear()
			h.clear()
		case op == 254:
			h.capacity = int64(s.next()) * 20
			c.Resize(h.capacity)
		case op < again:
			was := h.oldest + uint32(s.next())%(h.gen-h.oldest+1)
			for was < h.gen && h.tokens[was] == 0 {
				was++
			}
			n := min(int64(s.next()), h.tokens[was])
			c.use(n, was&genMask, true, 0)
			h.use(n, was, true)
		default:
			n := int64(s.next())
			c.use(n, 0, false, 0)
			h.use(n, 0, false)
		}
		h.check(t, c)
	}
}

func (h *ledger) check(t *testing.T, c *Cache) {
	t.Helper()
	if gen, oldest := c.gen.Load(), c.oldest.Load(); gen != h.gen || oldest != h.oldest {
		t.Fatalf("generations %d to %d, the twin has %d to %d", oldest, gen, h.oldest, h.gen)
	}
	sum := int64(0)
	for g := h.oldest; g <= h.gen; g++ {
		sum += h.tokens[g]
		if got := c.tokens[g%ring].Load(); got != h.tokens[g] {
			t.Fatalf("%d tokens in generation %d, the twin has %d", got, g, h.tokens[g])
		}
	}
	if again, gone := c.again.Load(), c.gone.Load(); again != h.again || gone != h.gone {
		t.Fatalf("%d tokens were used again and %d are gone, the twin has %d and %d", again, gone, h.again, h.gone)
	}
	if got := c.sum.Load(); got != sum {
		t.Fatalf("%d tokens in all, the twin has %d", got, sum)
	}
	for g := max(80, h.gen) - 80; g <= h.gen; g++ {
		if p := (Match{Cache: 9, Gen: g & genMask}); c.Has(p) != (g >= h.oldest) {
			t.Fatalf("Holds() of generation %d is %v, %d is the oldest", g, c.Has(p), h.oldest)
		}
	}
}

func TestCacheAgainstItsTwin(t *testing.T) {
	for seed := range uint64(20) {
		keep(t, randomTape(seed, 3000))
	}
}

func FuzzCache(f *testing.F) {
	f.Add([]byte(randomTape(2, 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1<<13 {
			keep(t, b)
		}
	})
}

// beginnings is the naive twin of a Maker: it hashes each beginning of the prompt from
// its start, and then says of each whether it is kept.
func beginnings(seed session.Key, messages [][]byte, tokens int) (links []Link) {
	type end struct {
		key  session.Key
		size int
		last bool // of a message
	}
	var ends []end
	key, size := seed, 0
	for _, m := range messages {
		for p := range slices.Chunk(m, piece) {
			key, size = session.Next(key, p), size+len(p)
			ends = append(ends, end{key: key, size: size})
		}
		if len(ends) > 0 {
			ends[len(ends)-1].last = true
		}
	}
	step := 1
	for len(ends) > MaxLinks && step*spreadPieces < len(ends) {
		step *= 2
	}
	for i, e := range ends {
		behind := 0 // messages that end here or later
		for _, o := range ends[i:] {
			if o.last {
				behind++
			}
		}
		if (i+1)%step == 0 || i >= len(ends)-lastPieces || e.last && behind <= lastMessages {
			links = append(links, Link{Key: e.key, Tokens: uint32(float64(e.size)*float64(tokens)/float64(size) + 0.5)})
		}
	}
	return links
}

func checkMaker(t *testing.T, s tape) {
	var messages [][]byte
	bytes := 0
	for len(s) > 0 {
		m := make([]byte, s.next()*s.next()/8)
		for i := range m {
			m[i] = byte(len(messages) * i)
		}
		messages = append(messages, m)
		bytes += len(m)
	}
	tokens := bytes / 3
	m := NewMaker(5, make([]Link, 0, 3))
	for _, b := range messages {
		m.Add(b)
	}
	got, want := m.Links(tokens), beginnings(5, messages, tokens)
	if len(got) != len(want) || len(got) > MaxLinks {
		t.Fatalf("%d links, the twin has %d, at most %d", len(got), len(want), MaxLinks)
	}
	for i := range got {
		if d := int(got[i].Tokens) - int(want[i].Tokens); got[i].Key != want[i].Key || d < -1 || d > 1 {
			t.Fatalf("link %d is %v, the twin has %v", i, got[i], want[i])
		}
	}
}

func TestMakerAgainstItsTwin(t *testing.T) {
	for seed := range uint64(200) {
		checkMaker(t, randomTape(seed, int(seed)))
	}
}

func FuzzMaker(f *testing.F) {
	f.Add([]byte(randomTape(3, 60)))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1<<9 {
			checkMaker(t, b)
		}
	})
}

// count sends prompts that branch off from each other anywhere, and compares how many
// tokens are held to be cached with how many pieces there are, each counted once. For
// prompts of up to MaxLinks pieces that is exact; of longer ones not all pieces are known.
func count(t *testing.T, s tape, longest int, tolerance float64) {
	x, c := newIndex(1<<16, time.Hour), NewCache(3, 1<<40)
	seen := map[session.Key]bool{}
	var all [][]byte // prompts, of a byte for each piece
	for len(s) > 0 {
		var blocks []byte
		if from := s.next(); len(all) > 0 && from%8 > 0 {
			old := all[from%len(all)]
			blocks = slices.Clone(old[:len(old)*(1+s.next()%32)/32])
		}
		for range 1 + s.next()%max(2, longest/8) {
			blocks = append(blocks, byte(s.next()))
		}
		blocks = blocks[:min(len(blocks), longest)]
		all = append(all, blocks)
		m, k := NewMaker(7, nil), session.Key(7)
		for i := range blocks {
			m.Piece(blocks[i:i+1], 1)
			k = session.Next(k, blocks[i:i+1])
			seen[k] = true
		}
		m.End()
		x.Use(m.Links(10*len(blocks)), c, epoch)
		if got, want := float64(c.sum.Load()), float64(10*len(seen)); got < want*(1-tolerance) || got > want*(1+tolerance) {
			t.Fatalf("%.0f tokens are counted, there are %.0f", got, want)
		}
	}
}

func TestTokensCountOnce(t *testing.T) {
	for seed := range uint64(10) {
		count(t, randomTape(seed, 2000), MaxLinks, 0)
		count(t, randomTape(seed, 6000), 6*MaxLinks, 0.1)
	}
}
