package blocks

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// shelf is the twin of Names and Set: whole prompts as text, by the engine's names.
type shelf struct {
	holders map[ID][]string
}

func text(adapter string, tokens []uint32) string {
	b := []byte(adapter + "|")
	for _, t := range tokens {
		b = append(b, byte(t>>8), byte(t))
	}
	return string(b)
}

func (s *shelf) count(adapter string, tokens []uint32, size int) (n int) {
	for (n+1)*size < len(tokens) && s.has(text(adapter, tokens[:(n+1)*size])) {
		n++
	}
	return n
}

func (s *shelf) has(prompt string) bool {
	for _, all := range s.holders {
		if slices.Contains(all, prompt) {
			return true
		}
	}
	return false
}

// TestBlocksAgreeWithTheirTwin stores, evicts and looks up prompts that have
// beginnings in common, of two ranks that name blocks differently.
func TestBlocksAgreeWithTheirTwin(t *testing.T) {
	const size = 4
	rng := rand.New(rand.NewPCG(5, 6))
	var b Set
	names := NewNames(&b)
	twin := shelf{holders: map[ID][]string{}}
	hashes := map[string]uint64{}
	name := func(prompt string) uint64 {
		if hashes[prompt] == 0 {
			hashes[prompt] = rng.Uint64()
		}
		return hashes[prompt]
	}
	prompt := func() (string, []uint32) {
		tokens := make([]uint32, rng.IntN(40))
		for i := range tokens {
			tokens[i] = uint32(rng.IntN(2)) << (i / 4 % 3) // few differ early
		}
		return []string{"", "", "lora"}[rng.IntN(3)], tokens
	}
	for range 20000 {
		adapter, tokens := prompt()
		rank := rng.IntN(2)
		switch blocks := len(tokens) / size; {
		case rng.IntN(200) == 0:
			names.Clear(rank)
			for id := range twin.holders {
				if id.Rank == rank {
					delete(twin.holders, id)
				}
			}
		case rng.IntN(2) == 0:
			s := Stored{Rank: rank, Root: true, Tokens: tokens[:blocks*size], Size: size, Adapter: adapter}
			for i := range blocks {
				whole := text(adapter, tokens[:(i+1)*size])
				h := name(whole) + uint64(rank)
				s.Hashes = append(s.Hashes, h)
				twin.holders[ID{rank, h}] = append(twin.holders[ID{rank, h}], whole)
			}
			if blocks > 0 && !names.Store(&s) {
				t.Fatal("not stored")
			}
		case blocks > 0:
			id := ID{rank, name(text(adapter, tokens[:blocks*size])) + uint64(rank)}
			names.Remove(id)
			if n := len(twin.holders[id]); n > 1 {
				twin.holders[id] = twin.holders[id][1:]
			} else {
				delete(twin.holders, id)
			}
		}
		adapter, tokens = prompt()
		chain := Append(nil, Root(adapter), 0, tokens, size)
		if got, want := b.Count(chain), twin.count(adapter, tokens, size); got != want {
			t.Fatalf("%d blocks of %v for %q, want %d", got, tokens, adapter, want)
		}
	}
}

func stored(hash uint64, tokens ...uint32) *Stored {
	return &Stored{Hashes: []uint64{hash}, Root: true, Tokens: tokens, Size: len(tokens)}
}

func TestBlocksThatCannotBeStored(t *testing.T) {
	tests := []struct {
		name string
		s    Stored
	}{
		{"behind a block that is not known", Stored{Hashes: []uint64{3}, Parent: 9, Tokens: []uint32{1, 2}, Size: 2}},
		{"of another size", Stored{Hashes: []uint64{3}, Root: true, Tokens: []uint32{1, 2, 3}, Size: 3}},
		{"with too few tokens", Stored{Hashes: []uint64{3, 4}, Root: true, Tokens: []uint32{1, 2}, Size: 2}},
		{"with too few extras", Stored{Hashes: []uint64{3}, Root: true, Tokens: []uint32{1, 2}, Size: 2, Extra: []uint64{}}},
		{"of no size", Stored{}},
	}
	for _, tt := range tests {
		var b Set
		names := NewNames(&b)
		names.Store(stored(1, 1, 2))
		if names.Store(&tt.s) || b.Len() != 1 {
			t.Errorf("%s: stored, %d blocks in all", tt.name, b.Len())
		}
	}
}

// TestBlocksOfOtherContent have the same tokens, and are found by nobody who has
// nothing but these.
func TestBlocksOfOtherContent(t *testing.T) {
	var b Set
	names := NewNames(&b)
	s := stored(1, 1, 2)
	s.Extra = []uint64{77}
	names.Store(s)
	prompt := Append(nil, Root(""), 0, []uint32{1, 2, 3}, 2)
	if b.Len() != 1 || b.Count(prompt) != 0 {
		t.Errorf("%d blocks, %d of a prompt without the image", b.Len(), b.Count(prompt))
	}
	names.Store(stored(2, 1, 2))
	if b.Count(prompt) != 1 {
		t.Error("the block without an image is not found")
	}
	if n := len(Append(nil, Root(""), 0, []uint32{1, 2, 3, 4}, 2)); n != 1 {
		t.Errorf("%d blocks of two may be found: the last token is always worked on", n)
	}
	names.Store(stored(2, 5, 6)) // the name is given to something else
	if b.Count(prompt) != 0 || b.Len() != 2 {
		t.Errorf("%d blocks, and what the name was given to before is still found", b.Len())
	}
	names.Forget()
	if k, size := b.Knowledge(); k != Nothing || size != 0 || b.Len() != 0 {
		t.Errorf("knowledge %d, size %d, %d blocks after all is forgotten", k, size, b.Len())
	}
}

// TestBlocksWhileReadersLook stores many while others look up one that stays.
func TestBlocksWhileOthersRead(t *testing.T) {
	var b Set
	names := NewNames(&b)
	names.Store(stored(1, 1, 2))
	prompt := Append(nil, Root(""), 0, []uint32{1, 2, 3}, 2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if b.Count(prompt) != 1 {
					t.Error("a block that stays was not found")
					return
				}
			}
		})
	}
	for i := range uint32(50000) {
		names.Store(stored(uint64(i)+2, i, 7))
		if i >= 20000 {
			names.Remove(ID{Hash: uint64(i) - 20000 + 2})
		}
	}
	close(stop)
	wg.Wait()
	if n := b.Len(); n != 20001 {
		t.Errorf("%d blocks", n)
	}
}

// BenchmarkBlocks is what it costs to make a prompt of 16,384 tokens into keys, and
// to look it up where all of it is cached and where nothing is.
func BenchmarkBlocks(b *testing.B) {
	tokens := make([]uint32, 16384)
	for i := range tokens {
		tokens[i] = uint32(i * 7)
	}
	var full, empty Set
	s := Stored{Root: true, Size: 16, Tokens: tokens}
	for i := range len(tokens) / 16 {
		s.Hashes = append(s.Hashes, uint64(i)+1)
	}
	NewNames(&full).Store(&s)
	NewNames(&empty).Store(stored(1, make([]uint32, 16)...))
	chain := Append(nil, Root(""), 0, tokens, 16)
	b.Run("keys", func(b *testing.B) {
		var memory []Key
		for b.Loop() {
			memory = Append(memory[:0], Root(""), 0, tokens, 16)
		}
	})
	for name, x := range map[string]*Set{"all": &full, "none": &empty} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				x.Count(chain)
			}
		})
	}
}
