package token

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// TestQuickWordsAreTheSplitters holds that what is cut off the quick way is what the
// splitters cut off, and has the same key.
func TestQuickWordsAreTheSplitters(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 21))
	pieces := []string{"a", "z", "A", "Z", "the", "Ab", "ABC", "letters", "@", "[", "`", "{"}
	all := append(splitterTwins[:len(splitterTwins):len(splitterTwins)], struct {
		name  string
		split splitter
		twin  func(string) int
	}{name: "smollm", split: gpt2{llamaClasses(), true}})
	quick := 0
	for range 20000 {
		var b strings.Builder
		if rng.IntN(2) == 0 {
			b.WriteByte(' ')
		}
		for range rng.IntN(8) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		b.WriteString(randomText(rng, 12))
		b.WriteString(strings.Repeat(" ", quickLen))
		text := []byte(b.String())
		for _, s := range all {
			_, cased := s.split.(o200k)
			k, n := quickWord(text, cased)
			if n == 0 {
				continue
			}
			quick++
			if want := s.split.next(text); n != want {
				t.Fatalf("%s cuts %q off %q; the quick way cuts %q", s.name, text[:want], text, text[:n])
			}
			if want := keyOf(text, n); k != want {
				t.Fatalf("%q of %q has the key %x; keyOf has %x", text[:n], text, k, want)
			}
		}
	}
	if quick < 20000 {
		t.Errorf("only %d words were cut the quick way", quick)
	}
}

// TestSeamsChangeNothing holds that words merged part by part have the tokens that they have
// as a whole, whatever the merge rules are.
func TestSeamsChangeNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(22, 22))
	runes := []string{"天", "地", "大", "夫", "é", "a", "🙂"}
	parted := 0
	for range 300 {
		v := &vocabulary{tokens: newNames(8)}
		var known []string
		for b := range 256 {
			v.tokens.add(encoded[b])
		}
		for _, b := range []byte(strings.Join(runes, "")) {
			known = append(known, string(encoded[b]))
		}
		for range 5 + rng.IntN(80) {
			left, right := known[rng.IntN(len(known))], known[rng.IntN(len(known))]
			v.merges = append(v.merges, []byte(left+" "+right))
			known = append(known, left+right)
			if rng.IntN(6) > 0 {
				v.tokens.add([]byte(left + right))
			}
		}
		twin := newNaive(v)
		m, err := newBPE(v, gpt2{classes: llamaClasses()})
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			var b strings.Builder
			for range 1 + rng.IntN(16) {
				b.WriteString(runes[rng.IntN(len(runes))])
			}
			word := []byte(b.String())
			if m.seams.next(word) < len(word) {
				parted++
			}
			if got, want := m.merge(word), twin.count(b.String()); got != want {
				t.Fatalf("merge(%q) = %d; the twin has %d", word, got, want)
			}
		}
	}
	if parted < 1000 {
		t.Errorf("only %d words had seams", parted)
	}
}

// TestCountIsTheSumOfItsWords holds a real model's counts to the splitter's words, merged whole.
func TestCountIsTheSumOfItsWords(t *testing.T) {
	m := smol(t).bpe
	for name, text := range benchTexts() {
		text = text[:200<<10]
		text = clean(text)
		want := 0
		for rest := text; len(rest) > 0; {
			n := m.split.next(rest)
			want += m.mergeWhole(rest[:n])
			rest = rest[n:]
		}
		if got := m.count(text); got != want {
			t.Errorf("%s has %d tokens; its words have %d", name, got, want)
		}
	}
}

// TestLoneBytesAreTheSplitters holds that what is taken for a word of one byte is one to the
// splitters, whatever follows.
func TestLoneBytesAreTheSplitters(t *testing.T) {
	rng := rand.New(rand.NewPCG(23, 23))
	all := append(splitterTwins[:len(splitterTwins):len(splitterTwins)], struct {
		name  string
		split splitter
		twin  func(string) int
	}{name: "smollm", split: gpt2{llamaClasses(), true}})
	for _, s := range all {
		l, found := loneOf(s.split), 0
		for a := range 0x100 {
			for b := range 0x80 {
				for range 8 {
					text := clean(append([]byte{byte(a), byte(b)}, randomText(rng, 6)...))
					if len(text) < 2 || !l.is(text[0], text[1]) {
						continue
					}
					found++
					if n := s.split.next(text); n != 1 {
						t.Fatalf("%s cuts %q off %q, of which the first byte was taken for a word", s.name, text[:n], text)
					}
				}
			}
		}
		if found < 1000 {
			t.Errorf("%s: only %d words of one byte", s.name, found)
		}
	}
}
