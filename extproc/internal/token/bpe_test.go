package token

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// naive is the twin of bpe: strings in maps, the whole word looked over for the
// best pair each time, as the original description of GPT-2's encoder has it.
type naive struct {
	tokens map[string]bool
	ranks  map[[2]string]int
}

func newNaive(v *vocabulary) *naive {
	n := &naive{tokens: map[string]bool{}, ranks: map[[2]string]int{}}
	for i := range v.tokens.len() {
		n.tokens[string(v.tokens.name(i))] = true
	}
	for i, rule := range v.merges {
		left, right, _ := strings.Cut(string(rule), " ")
		if _, ok := n.ranks[[2]string{left, right}]; !ok {
			n.ranks[[2]string{left, right}] = i
		}
	}
	return n
}

func (n *naive) count(word string) int {
	var parts []string
	for _, b := range []byte(word) {
		parts = append(parts, string(encoded[b]))
	}
	for {
		best, at := 1<<30, -1
		for i := range len(parts) - 1 {
			if r, ok := n.ranks[[2]string{parts[i], parts[i+1]}]; ok && r < best {
				best, at = r, i
			}
		}
		if at < 0 {
			break
		}
		parts[at] += parts[at+1]
		parts = append(parts[:at+1], parts[at+2:]...)
	}
	tokens := 0
	for _, p := range parts {
		tokens += n.weight(p)
	}
	return tokens
}

func (n *naive) weight(part string) int {
	if n.tokens[part] {
		return 1
	}
	tokens := 0
	for _, r := range part {
		if n.tokens[string(r)] {
			tokens++
		}
	}
	return tokens
}

// randomVocabulary has random merge rules over a few letters. Some bytes, and
// some results of merging, are no tokens.
func randomVocabulary(rng *rand.Rand) *vocabulary {
	v := &vocabulary{tokens: newNames(8)}
	var known []string
	for b := range 256 {
		if rng.IntN(20) > 0 {
			v.tokens.add(encoded[b])
		}
	}
	for _, c := range "abcd" {
		known = append(known, string(c))
	}
	for range 5 + rng.IntN(60) {
		left, right := known[rng.IntN(len(known))], known[rng.IntN(len(known))]
		v.merges = append(v.merges, []byte(left+" "+right))
		known = append(known, left+right)
		if rng.IntN(6) > 0 {
			v.tokens.add([]byte(left + right))
		}
	}
	return v
}

func randomWord(rng *rand.Rand, most int) string {
	word := make([]byte, 1+rng.IntN(most))
	for i := range word {
		word[i] = "aaabbcd e"[rng.IntN(9)]
	}
	return string(word)
}

func TestMergingAgreesWithItsTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		v := randomVocabulary(rng)
		twin := newNaive(v)
		m, err := newBPE(v, gpt2{classes: llamaClasses()})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			word := randomWord(rng, 60)
			want := twin.count(word)
			if got := m.merge([]byte(word)); got != want {
				t.Fatalf("merge(%q) = %d; the twin has %d", word, got, want)
			}
			if len(word) <= shortWord && m.mergeLong([]byte(word)) != want {
				t.Fatalf("mergeLong(%q) = %d; the twin has %d", word, m.mergeLong([]byte(word)), want)
			}
			for range 2 { // computed, then cached
				if got := m.word([]byte(word), len(word)); got != want {
					t.Fatalf("word(%q) = %d; the twin has %d", word, got, want)
				}
			}
		}
	}
}

func TestLongWordsTakeNoQuadraticTime(t *testing.T) {
	m := smol(t)
	text := []byte(strings.Repeat("ab", 1<<19))
	if n := m.Count(text); n < 1<<17 || n > 1<<20 {
		t.Errorf("%d tokens for a word of a million letters", n)
	}
}

func TestCountersMayBeShared(t *testing.T) {
	m := smol(t)
	rng := rand.New(rand.NewPCG(1, 9))
	texts := make([][]byte, 64)
	want := make([]int, len(texts))
	for i := range texts {
		texts[i] = []byte(fmt.Sprint(randomWord(rng, 12), " ", randomWord(rng, 12), string(prose(rng, 200))))
		want[i] = m.Count(texts[i])
	}
	m.bpe.cache = newCache() // all start cold and write over each other
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			for i := range 2000 {
				at := (i*7 + g*13) % len(texts)
				if got := m.Count(texts[at]); got != want[at] {
					t.Errorf("Count(%q) = %d; alone it was %d", texts[at], got, want[at])
					return
				}
				cut := i % len(texts[at])
				if got, _ := m.memoized([][]byte{texts[at][:cut], texts[at][cut:]}, nil); got != want[at] {
					t.Errorf("memoized(%q) = %d; want %d", texts[at], got, want[at])
					return
				}
			}
		})
	}
	group.Wait()
}

// TestMemoNeverMixesTexts counts texts of the same few pieces, in any order, twice.
func TestMemoNeverMixesTexts(t *testing.T) {
	m := withTemplate(t, chatML) // with a memo of its own
	rng := rand.New(rand.NewPCG(3, 9))
	pieces := [][]byte{[]byte(strings.Repeat("one two ", 9)), []byte(strings.Repeat("x", 70)), []byte("a"), nil, []byte("<|im_end|>")}
	var buf []byte
	for range 3000 {
		some := make([][]byte, 1+rng.IntN(5))
		for i := range some {
			some[i] = pieces[rng.IntN(len(pieces))]
		}
		var got int
		got, buf = m.memoized(some, buf)
		if want := m.tokens(bytes.Join(some, nil), true); got != want {
			t.Fatalf("memoized(%q) = %d, want %d", some, got, want)
		}
	}
}

func TestCacheNeverMixesWords(t *testing.T) {
	c := newCache()
	rng := rand.New(rand.NewPCG(5, 5))
	for range 200000 {
		word := make([]byte, 1+rng.IntN(maxCached))
		for i := range word {
			word[i] = byte(rng.IntN(3)) // zeroes too: lengths must distinguish words
		}
		k := keyOf(append(word, "more than sixteen bytes"[:rng.IntN(20)]...), len(word))
		want := 1 + (len(word)*7+int(word[0]))%15
		if got := c.get(k); got != 0 && got != want {
			t.Fatalf("the cache has %d for %v; it was given %d", got, word, want)
		}
		c.put(k, want)
	}
}

func TestBadMergeRules(t *testing.T) {
	for _, rule := range []string{"", " ", "a", "ab", "a ", " b", "ab "} {
		v := &vocabulary{tokens: newNames(1), merges: [][]byte{[]byte(rule)}}
		if _, err := newBPE(v, gpt2{}); err == nil {
			t.Errorf("merge rule %q was taken", rule)
		}
	}
}

func TestNamesGrowAndKeepTheFirst(t *testing.T) {
	s := newNames(1)
	for i := range 1000 {
		s.add(fmt.Append(nil, i%700))
	}
	for i := range 700 {
		if got := s.find(fmt.Append(nil, i)); got != i {
			t.Fatalf("find(%d) = %d", i, got)
		}
	}
	if got := s.find([]byte("x")); got != -1 {
		t.Errorf("find of what isn't there = %d", got)
	}
}

// TestWordsThatAreCut counts words of 8 MB, which takes a minute each if they are merged.
func TestWordsThatAreCut(t *testing.T) {
	m := smol(t)
	for _, unit := range []string{"a", " ", "\n", "é", "!", "ab"} {
		text := bytes.Repeat([]byte(unit), (8<<20)/len(unit))
		began := time.Now()
		n := m.CountPrompt(text)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%q took %v", unit, took)
		}
		one := m.CountPrompt(text[:longWord])
		if !m.Cuts(text) || m.Cuts(text[:longWord]) || n < 1500*one || n > 2500*one {
			t.Errorf("%q: %d tokens, cut: %v; a part of 1/2048 has %d", unit, n, m.Cuts(text), one)
		}
	}
	for _, text := range []string{strings.Repeat("word ", 100_000), strings.Repeat("語，", 20_000), strings.Repeat("a", longWord-1) + " " + strings.Repeat("a", longWord-1), ""} {
		if m.Cuts([]byte(text)) {
			t.Errorf("a text of %d bytes is cut", len(text))
		}
	}
	if !m.Cuts([]byte(strings.Repeat("word ", 1000) + strings.Repeat("a", longWord+1) + " b")) {
		t.Error("a word that is cut is taken to be exact")
	}
}
