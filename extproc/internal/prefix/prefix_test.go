package prefix

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/session"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func newIndex(most int, idle time.Duration) *Index {
	x := New(most, idle)
	x.base = epoch
	return x
}

// prompt is the beginnings of a prompt of blocks, each of so many tokens.
func prompt(tokens uint32, blocks ...uint32) (chain []Link) {
	k := session.Seed("m")
	for i, b := range blocks {
		k = session.Next(k, binary.LittleEndian.AppendUint32(nil, b))
		chain = append(chain, Link{Key: k, Tokens: uint32(i+1) * tokens})
	}
	return chain
}

// cachedAt is how many tokens of a chain are found at c.
func cachedAt(x *Index, chain []Link, c *Cache) (n int) {
	var f Found
	x.Find(chain, epoch, &f)
	for _, p := range f.Matches {
		if c.Has(p) {
			n = max(n, int(p.Tokens))
		}
	}
	return n
}

func TestFindsTheLongestBeginningOfEachCache(t *testing.T) {
	x, a, b := newIndex(1000, time.Minute), NewCache(1, 0), NewCache(2, 0)
	x.Use(prompt(10, 1, 2, 3, 4), a, epoch)
	x.Use(prompt(10, 1, 2, 9), b, epoch)
	ask := prompt(10, 1, 2, 3, 4, 5)
	if n := cachedAt(x, ask, a); n != 40 {
		t.Errorf("%d tokens at the first, want 40", n)
	}
	if n := cachedAt(x, ask, b); n != 20 {
		t.Errorf("%d tokens at the second, want 20", n)
	}
	if n := cachedAt(x, prompt(10, 7), a); n != 0 {
		t.Errorf("%d tokens of a prompt that nobody has seen", n)
	}
	tail := prompt(10, 1, 2, 3, 4)[3].Key
	x.Answered(tail, a, 48, 8, epoch)
	if n := cachedAt(x, ask, a); n != 48 {
		t.Errorf("%d tokens with the answer, want 48", n)
	}
	x.Drop(tail, a)
	if n := cachedAt(x, ask, a); n != 30 {
		t.Errorf("%d tokens without the last beginning, want 30", n)
	}
	a.Clear()
	if n := cachedAt(x, ask, a); n != 0 {
		t.Errorf("%d tokens in an empty cache", n)
	}
}

func TestSharedPrefixesAreFound(t *testing.T) {
	x, c := newIndex(1000, time.Minute), NewCache(1, 0)
	var f Found
	for i := range uint32(3) {
		x.Use(prompt(10, 1, 2, 100+i), c, epoch)
	}
	if x.Find(prompt(10, 1, 2, 50), epoch, &f); f.Shared != 0 {
		t.Errorf("three continuations share %d tokens", f.Shared)
	}
	for i := range uint32(60) {
		x.Use(prompt(10, 1, 2, 100+i), c, epoch)
	}
	if x.Find(prompt(10, 1, 2, 50), epoch, &f); f.Shared != 20 || f.By < 15 {
		t.Errorf("60 continuations share %d tokens, by %.0f; want 20 by many", f.Shared, f.By)
	}
}

// TestLongPromptsGrow lets a conversation of many long messages grow: however many
// pieces it has, the next turn is found to begin with all of the last.
func TestLongPromptsGrow(t *testing.T) {
	x, c := newIndex(1<<16, time.Hour), NewCache(1, 0)
	var messages [][]byte
	r := rand.New(rand.NewPCG(3, 4))
	var memory []Link
	made := func() ([]Link, int) {
		m, bytes := NewMaker(7, memory), 0
		for _, b := range messages {
			m.Add(b)
			bytes += len(b)
		}
		memory = m.Links(bytes / 4)
		return memory, bytes / 4
	}
	before := 0
	for range 200 {
		for range 2 {
			b := make([]byte, 1+r.IntN(5000))
			for i := range b {
				b[i] = byte(r.IntN(256))
			}
			messages = append(messages, b)
		}
		chain, tokens := made()
		if len(chain) > MaxLinks || int(chain[len(chain)-1].Tokens) != tokens {
			t.Fatalf("%d links up to %d tokens; want at most %d up to %d", len(chain), chain[len(chain)-1].Tokens, MaxLinks, tokens)
		}
		if n := cachedAt(x, chain, c); n < before-1 || n > before+1 {
			t.Fatalf("after %d messages %d tokens are found, want the last turn's %d", len(messages), n, before)
		}
		x.Use(chain, c, epoch)
		before = tokens
	}
	other := messages[:len(messages)/2]
	messages = append(other[:len(other):len(other)], []byte("something else"))
	if chain, tokens := made(); cachedAt(x, chain, c) < tokens*9/10 {
		t.Errorf("of a branch half-way %d tokens of %d are found", cachedAt(x, chain, c), tokens)
	}
}

func TestNames(t *testing.T) {
	x, a, b := newIndex(1000, time.Minute), NewCache(1, 0), NewCache(2, 0)
	k := session.Named(session.Seed("m"), "x")
	x.Name(k, a, 30, epoch)
	x.Name(k, b, 50, epoch.Add(time.Second))
	if p, ok := x.Get(k, epoch.Add(time.Minute)); !ok || p.Cache != 2 || p.Tokens != 50 {
		t.Errorf("Get() = %v, %v; want 50 tokens at the second", p, ok)
	}
	if _, ok := x.Get(k, epoch.Add(2*time.Minute+time.Second)); ok {
		t.Error("a session is remembered after its idle time")
	}
}

func TestPlacesSurvivePacking(t *testing.T) {
	for _, p := range []Match{{1, 1, 1}, {cacheMask, genMask, tokenMask}, {5, 0, 0}} {
		if got := unpack(p.pack()); got != p {
			t.Errorf("%v came back as %v", p, got)
		}
	}
	if got := unpack(Match{1, 1, 1 << 30}.pack()); got.Tokens != tokenMask {
		t.Errorf("too many tokens came back as %d", got.Tokens)
	}
}

// lru is a naive cache of blocks: the order in which they were used, the last first.
type lru struct {
	capacity, block int
	keys            []session.Key
}

func (l *lru) use(chain []Link) {
	for _, k := range chain {
		for i, old := range l.keys {
			if old == k.Key {
				l.keys = append(l.keys[:i], l.keys[i+1:]...)
				break
			}
		}
		l.keys = append([]session.Key{k.Key}, l.keys...)
	}
	l.keys = l.keys[:min(len(l.keys), l.capacity/l.block)]
}

func (l *lru) cached(chain []Link) (n int) {
	for _, k := range chain {
		for _, have := range l.keys {
			if have == k.Key {
				n = int(k.Tokens)
			}
		}
	}
	return n
}

// TestCacheEvictsLikeLRU lets conversations grow on an engine of bounded capacity:
// what is believed to be cached must be what a naive cache holds, but for the last
// generation's worth, and hardly ever more.
func TestCacheEvictsLikeLRU(t *testing.T) {
	const block, capacity = 16, 16 * 400
	r := rand.New(rand.NewPCG(1, 2))
	x, c := newIndex(1<<16, time.Hour), NewCache(3, capacity)
	twin := lru{capacity: capacity, block: block}
	conversations := make([][]uint32, 60)
	next := uint32(1)
	var over, under, total int
	for step := range 6000 {
		at := r.IntN(len(conversations)) * r.IntN(len(conversations)) / len(conversations) // some more often
		talk := &conversations[at]
		if len(*talk) > 40 {
			*talk = nil
		}
		if len(*talk) == 0 {
			*talk = []uint32{1, 2, 3} // in common
		}
		for range 1 + r.IntN(3) {
			next++
			*talk = append(*talk, 1000+next)
		}
		chain := prompt(block, *talk...)
		if step > 500 {
			believed, real := cachedAt(x, chain, c), twin.cached(chain)
			over += max(0, believed-real)
			under += max(0, real-believed)
			total += real
		}
		x.Use(chain, c, epoch)
		twin.use(chain)
	}
	if float64(over) > 0.06*float64(total) || float64(under) > 0.06*float64(total) {
		t.Errorf("of %d cached tokens %d were not believed, and %d believed that were not; want at most 6 %%", total, under, over)
	}
	if used := c.Used(); used < 0.9 {
		t.Errorf("a full cache is used by %.2f", used)
	}
	if regret := c.Regret(0.5); regret <= 0.05 || regret >= 0.95 {
		t.Errorf("regret = %.2f, though some of what grew old was used again and some was not", regret)
	}
}

func TestEnginesThatReport(t *testing.T) {
	x, c := newIndex(1000, time.Hour), NewCache(4, 100)
	c.Reported(7, 0)
	x.Use(prompt(1000, 1, 2), c, epoch) // far more than it is said to hold: the engine knows
	if n := cachedAt(x, prompt(1000, 1, 2), c); n != 2000 {
		t.Errorf("%d tokens, want 2000", n)
	}
	c.Dropped(6)
	if n := cachedAt(x, prompt(1000, 1, 2), c); n != 2000 {
		t.Errorf("%d tokens after an older generation was dropped, want 2000", n)
	}
	c.Dropped(7)
	if n := cachedAt(x, prompt(1000, 1, 2), c); n != 0 {
		t.Errorf("%d tokens after they were dropped", n)
	}
}

func TestGenerationsGoRound(t *testing.T) {
	c := NewCache(1, 1600)
	c.gen.Store(genMask - 3)
	c.oldest.Store(genMask - 5)
	x := newIndex(1<<12, time.Hour)
	for i := range uint32(400) {
		x.Use(prompt(10, i), c, epoch)
		if n := cachedAt(x, prompt(10, i), c); n != 10 {
			t.Fatalf("what was just used is gone after %d", i)
		}
	}
	if n := cachedAt(x, prompt(10, 100), c); n != 0 {
		t.Errorf("%d tokens of 3000 tokens ago, in a cache of 1600", n)
	}
}

func TestFullSetsForgetTheOldest(t *testing.T) {
	x, c := newIndex(ways, time.Hour), NewCache(1, 0)
	for i := range uint32(2 * ways) {
		x.Use(prompt(10, i), c, epoch.Add(time.Duration(i)*time.Second))
	}
	if n := cachedAt(x, prompt(10, 0), c); n != 0 {
		t.Error("the oldest is still there")
	}
	if n := cachedAt(x, prompt(10, 2*ways-1), c); n != 10 {
		t.Error("the newest is gone")
	}
	if x.Evicted() != ways || x.Len(epoch.Add(time.Minute)) != ways {
		t.Errorf("Evicted() = %d, Len() = %d; want %d both", x.Evicted(), x.Len(epoch.Add(time.Minute)), ways)
	}
}

func TestIndexIsSafeForMany(t *testing.T) {
	x := newIndex(256, time.Hour)
	caches := []*Cache{NewCache(1, 500), NewCache(2, 500), NewCache(3, 0)}
	var wg sync.WaitGroup
	for g := range uint32(4) {
		wg.Go(func() {
			var f Found
			for i := range uint32(3000) {
				chain := prompt(7, i%17, g, i%5)
				c := caches[(i+g)%3]
				x.Find(chain, epoch, &f)
				for _, p := range f.Matches {
					if p.Cache == 0 || p.Cache > 3 || p.Tokens > 21+5 {
						t.Errorf("found %v, which nobody put there", p)
						return
					}
				}
				x.Use(chain, c, epoch)
				x.Answered(chain[2].Key, c, 26, 5, epoch)
				if i%50 == 0 {
					x.Drop(chain[1].Key, c)
				}
			}
		})
	}
	wg.Wait()
}

// TestTurnsKnownByOtherBeginningsCountOnce lets one conversation grow whose prompts
// are so long that most beginnings are left out, others in each turn.
func TestTurnsKnownByOtherBeginningsCountOnce(t *testing.T) {
	const capacity = 100_000
	x, c := newIndex(1<<16, time.Hour), NewCache(5, capacity)
	tokens := 0
	for turn := range 12 {
		m := NewMaker(session.Seed("m"), nil)
		for i := range 100 * (turn + 1) {
			m.Piece(binary.LittleEndian.AppendUint32(nil, uint32(i)), 1)
		}
		m.End()
		tokens = 1000 * (turn + 1)
		x.Use(m.Links(tokens), c, epoch)
	}
	if got, want := c.Used(), float64(tokens)/capacity; got < want-0.02 || got > want+0.02 {
		t.Errorf("%.0f tokens are counted for a conversation of %d", got*capacity, tokens)
	}
}

func TestAnswersCountOnce(t *testing.T) {
	x, c := newIndex(1000, time.Hour), NewCache(6, 10_000)
	first, second := prompt(100, 1), prompt(100, 1, 2, 3, 4, 5)
	x.Use(first, c, epoch)
	x.Answered(first[0].Key, c, 400, 300, epoch)
	x.Use(second, c, epoch) // with the answer, which is in other pieces
	if got := c.Used() * 10_000; got < 499 || got > 501 {
		t.Errorf("%.0f tokens are counted for 500", got)
	}
}

func TestIdle(t *testing.T) {
	x, c := newIndex(1000, time.Hour), NewCache(7, 1600)
	for i := range uint32(40) {
		x.Use(prompt(100, i), c, epoch.Add(time.Duration(i)*10*time.Second))
	}
	// The last 16 prompts are there; the oldest of them was used 150 s before the last.
	now := epoch.Add(390 * time.Second)
	if got := c.Idle(now.Unix()); got < 120 || got > 180 {
		t.Errorf("Idle() = %.0f s, want about 150", got)
	}
	if got := NewCache(8, 1600).Idle(now.Unix()); got != 0 {
		t.Errorf("Idle() = %.0f of an empty cache", got)
	}
}

// TestIdleOfWhatIsOpen asks a cache of which nothing but the open generation is left,
// after more generations than are kept apart.
func TestIdleOfWhatIsOpen(t *testing.T) {
	x, own, telling := newIndex(1000, time.Hour), NewCache(7, 1600), NewCache(8, 1600)
	for i := range uint32(3 * ring / 2) {
		now := epoch.Add(time.Duration(i) * time.Minute)
		x.Use(prompt(2000, i), own, now) // fills it
		x.Report(telling, i+2, prompt(100, i), now)
		telling.Dropped(i + 1)
	}
	now := epoch.Add(3 * ring / 2 * time.Minute)
	if got := own.Idle(now.Unix()); got != 0 {
		t.Errorf("Idle() = %.0f s, though all was used in the last minute", got)
	}
	if got := telling.Idle(now.Unix()); got != 0 {
		t.Errorf("Idle() = %.0f s, though the engine says that all was used in the last minute", got)
	}
}

func TestResizedKnowsTheSame(t *testing.T) {
	x, c := newIndex(1<<12, time.Hour), NewCache(9, 0)
	at := func(i uint32) time.Time { return epoch.Add(time.Duration(i) * time.Second) }
	for i := range uint32(1000) {
		x.Use(prompt(10, i, 1, 2), c, at(i))
	}
	count := func(x *Index, from, to uint32) (n int) {
		for i := from; i < to; i++ {
			var f Found
			x.Find(prompt(10, i, 1, 2), at(1000), &f)
			if len(f.Matches) > 0 && f.Matches[0].Tokens == 30 && c.Has(f.Matches[0]) {
				n++
			}
		}
		return n
	}
	had := count(x, 0, 1000)
	if y := x.Resized(1<<14, 2*time.Hour, at(1000)); count(y, 0, 1000) != had || had < 900 {
		t.Errorf("%d of %d prompts are known in a larger index", count(y, 0, 1000), had)
	}
	if y := x.Resized(1<<12, 100*time.Second, at(1000)); count(y, 0, 899) != 0 || count(y, 900, 1000) != count(x, 900, 1000) {
		t.Errorf("of a shorter memory %d old prompts are known, and %d of %d new ones", count(y, 0, 899), count(y, 900, 1000), count(x, 900, 1000))
	}
	small := x.Resized(1<<9, time.Hour, at(1000))
	if old, fresh := count(small, 0, 500), count(small, 950, 1000); old > 50 || fresh < 40 {
		t.Errorf("a smaller one knows %d of the older half, and %d of the last 50", old, fresh)
	}
}

// TestResizedMixesNothingUp resizes an index whose entries take each other's places
// meanwhile: each must be as it was at one moment.
func TestResizedMixesNothingUp(t *testing.T) {
	const keys = 64 // each of as many tokens as its key
	x, c := newIndex(ways, time.Hour), NewCache(9, 0)
	end := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
				x.Use([]Link{{Key: session.Key(1 + i%keys), Tokens: uint32(1 + i%keys)}}, c, epoch)
			}
		}
	})
	defer writer.Wait()
	defer close(end)
	for range 8000 {
		y := x.Resized(ways, time.Hour, epoch)
		for k := range session.Key(keys) {
			if p, ok := y.Get(k+1, epoch); ok && p.Tokens != uint32(k+1) {
				t.Fatalf("%d tokens of a beginning of %d", p.Tokens, k+1)
			}
		}
	}
}

func TestFoundReport(t *testing.T) {
	var f Found
	f.Matches = f.matches[:0]
	f.Add(Match{Cache: 1, Tokens: 500})
	f.Add(Match{Cache: 2, Tokens: 400})
	f.Report(Match{Cache: 1, Tokens: 64}, true)
	f.Report(Match{Cache: 2, Tokens: 64}, false)
	if len(f.Matches) != 2 || f.Matches[0].Tokens != 400 || f.Matches[1] != (Match{Cache: 1, Tokens: 64}) {
		t.Errorf("places %v", f.Matches)
	}
	for i := range uint32(2 * maxMatches) {
		f.Report(Match{Cache: 10 + i, Tokens: 100 + i}, true)
	}
	f.Report(Match{Cache: 9, Tokens: 1}, true)
	if len(f.Matches) != maxMatches || slices.ContainsFunc(f.Matches, func(p Match) bool { return p.Tokens < 100 }) {
		t.Errorf("%d places: %v", len(f.Matches), f.Matches)
	}
}
