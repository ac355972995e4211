package token

import (
	"math/rand/v2"
	"regexp"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Character classes for Go's regular expressions, whose \s is only ASCII.
const (
	blank   = `\t\n\v\f\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}`
	endings = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
)

// pattern is the twin of a splitter: the published regular expression, but for
// its last two alternatives, \s+(?!\S)|\s+, which Go's engine doesn't have.
func pattern(s string) func(string) int {
	re := regexp.MustCompile(`^(?:` + s + `)`)
	blanks := regexp.MustCompile(`^[` + blank + `]+`)
	return func(text string) int {
		if at := re.FindStringIndex(text); at != nil {
			return at[1]
		}
		run := blanks.FindString(text)
		_, last := utf8.DecodeLastRuneInString(run)
		if len(run) == len(text) || len(run) == last {
			return len(run)
		}
		return len(run) - last
	}
}

var splitterTwins = []struct {
	name  string
	split splitter
	twin  func(string) int
}{
	{
		"gpt2", gpt2{classes: hfClasses()},
		pattern(`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^` + blank + `\p{L}\p{N}]+`),
	},
	{
		"cl100k", cl100k{hfClasses(), 3, letter, true},
		pattern(endings + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^` + blank + `\p{L}\p{N}]+[\r\n]*|[` + blank + `]*[\r\n]+`),
	},
	{
		"qwen2", cl100k{hfClasses(), 1, letter, true},
		pattern(endings + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^` + blank + `\p{L}\p{N}]+[\r\n]*|[` + blank + `]*[\r\n]+`),
	},
	{
		"qwen3.5", cl100k{hfClasses(), 1, letter | mark, true},
		pattern(endings + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^` + blank + `\p{L}\p{M}\p{N}]+[\r\n]*|[` + blank + `]*[\r\n]+`),
	},
	{
		"o200k", o200k{hfClasses(), 3, true, true},
		pattern(o200kWord + `+` + endings + `?|` + o200kCaps + `*` + endings + `?|\p{N}{1,3}| ?[^` + blank + `\p{L}\p{N}]+[\r\n/]*|[` + blank + `]*[\r\n]+`),
	},
	{
		"tekken", o200k{hfClasses(), 1, false, true},
		pattern(o200kWord + `+|` + o200kCaps + `*|\p{N}| ?[^` + blank + `\p{L}\p{N}]+[\r\n/]*|[` + blank + `]*[\r\n]+`),
	},
}

// scraps are what random texts are made of.
var scraps = []string{
	"a", "b", "the", "Ab", "ABC", "aB", "é", "ß", "Ж", "ж", "漢", "あ", "ǅ", "ʰ", "ª", "ſ", "İ", "\u0301", "\u0940", "1", "23", "٣", "Ⅷ", "½",
	" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u0085", ".", ",", "!?", "/", "//", "-", "_", "'", "'s", "'S", "'re",
	"'LL", "'d", "'x", "'ſ", "\u2019s", "🙂", "\u200d", "\ufe0f", "\ufeff", "\x00", "\ufffd", "<|im_start|>", "<|im_end|>", "<|",
}

func randomText(rng *rand.Rand, most int) string {
	out := ""
	for range rng.IntN(most) {
		out += scraps[rng.IntN(len(scraps))]
	}
	return out
}

func TestSplittersAgreeWithTheirTwins(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 11))
	for range 5000 {
		text := randomText(rng, 24)
		for _, s := range splitterTwins {
			rest := text
			for len(rest) > 0 {
				got, want := s.split.next([]byte(rest)), s.twin(rest)
				if got != want {
					t.Fatalf("%s cuts %q off %q; the pattern cuts %q", s.name, rest[:got], rest, rest[:want])
				}
				rest = rest[got:]
			}
		}
	}
}

// TestDigitsEndTheText holds gpt2 with single digits to its definition: number
// characters are cut out first, then the texts between are split.
func TestDigitsEndTheText(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 12))
	digits, runs := gpt2{classes: hfClasses(), digits: true}, gpt2{classes: hfClasses()}
	number := regexp.MustCompile(`\p{N}`)
	for range 5000 {
		text := randomText(rng, 24)
		var want []string
		rest := text
		for rest != "" {
			end := len(rest)
			if at := number.FindStringIndex(rest); at != nil && at[0] == 0 {
				want, rest = append(want, rest[:at[1]]), rest[at[1]:]
				continue
			} else if at != nil {
				end = at[0]
			}
			for piece := rest[:end]; piece != ""; {
				n := runs.next([]byte(piece))
				want, piece = append(want, piece[:n]), piece[n:]
			}
			rest = rest[end:]
		}
		for i, rest := 0, text; rest != ""; i++ {
			n := digits.next([]byte(rest))
			if rest[:n] != want[i] {
				t.Fatalf("%q of %q; want %q", rest[:n], text, want)
			}
			rest = rest[n:]
		}
	}
}

func TestClassesFollowUnicode(t *testing.T) {
	c := hfClasses()
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if unicode.Is(unicode15dot1, r) {
			continue
		}
		k := c.of(r)
		if (k&letter != 0) != unicode.IsLetter(r) || (k&number != 0) != unicode.IsNumber(r) ||
			(k&space != 0) != unicode.IsSpace(r) || (k&mark != 0) != unicode.Is(unicode.M, r) {
			t.Fatalf("%U has class %b", r, k)
		}
	}
}

func FuzzSplitters(f *testing.F) {
	for _, s := range scraps {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		text = clean(text)
		for _, s := range splitterTwins {
			for rest := string(text); rest != ""; {
				got := s.split.next([]byte(rest))
				if want := s.twin(rest); got != want {
					t.Fatalf("%s cuts %d bytes off %q; the pattern cuts %d", s.name, got, rest, want)
				}
				rest = rest[got:]
			}
		}
	})
}
