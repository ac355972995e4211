package token

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"unicode"
	"unicode/utf8"
)

// class is the set of properties of a character that pre-tokenizers ask about.
type class uint8

const (
	letter class = 1 << iota // \p{L}
	number                   // \p{N}
	space                    // \s, that is White_Space
	mark                     // \p{M}
	upper                    // may stand in the capitals of o200k's words
	lower                    // may stand in the small letters of o200k's words
)

// classes holds the class of every character: pages of 256, equal ones shared.
type classes struct {
	ascii [utf8.RuneSelf]class // a copy of the first half of page 0
	index [(unicode.MaxRune + 1) >> 8]uint8
	pages [][256]class
}

func (c *classes) of(r rune) class {
	return c.pages[c.index[r>>8]][r&0xff]
}

// at returns the class and width of the character at the start of b, and zeroes
// at the end of the text. Text is valid UTF-8 here: clean has seen to that.
func (c *classes) at(b []byte) (class, int) {
	if len(b) == 0 {
		return 0, 0
	}
	if b[0] < utf8.RuneSelf {
		return c.ascii[b[0]], 1
	}
	r, n := utf8.DecodeRune(b)
	return c.of(r), n
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// asciiLetters returns how many bytes at the start of b are letters of ASCII, or
// fewer near the end of b. It takes eight at a time: small letters and
// capitals differ in one bit, and a sum sets a byte's high bit from a bound on.
func asciiLetters(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		x := (w | ones*0x20) &^ highs
		other := (x + ones*(0x80-'z'-1)) | ^(x + ones*(0x80-'a')) | w
		if other &= highs; other != 0 {
			return i + bits.TrailingZeros64(other)/8
		}
	}
	return i
}

// hfClasses follows Unicode as Hugging Face's tokenizers do.
var hfClasses = sync.OnceValue(func() *classes { return newClasses(unicodeClass) })

// llamaClasses follows llama.cpp, which sees \p{Lu}, \p{Ll} … of other scripts
// as any letter, and doesn't count marks into words.
var llamaClasses = sync.OnceValue(func() *classes { return newClasses(llamaClass) })

func newClasses(class func(rune, class) class) *classes {
	flat := flatten()
	c := &classes{}
	seen := map[[256]uint8]uint8{}
	for base := range len(c.index) {
		var page [256]uint8
		for i := range page {
			page[i] = uint8(class(rune(base<<8|i), flat[base<<8|i]))
		}
		at, ok := seen[page]
		if !ok {
			at = uint8(len(c.pages))
			seen[page] = at
			c.pages = append(c.pages, classesOf(page))
		}
		c.index[base] = at
	}
	copy(c.ascii[:], c.pages[c.index[0]][:])
	return c
}

func classesOf(page [256]uint8) (out [256]class) {
	for i, v := range page {
		out[i] = class(v)
	}
	return out
}

// flatten spreads Go's range tables over an array: far cheaper than asking for
// each character.
func flatten() []class {
	flat := make([]class, unicode.MaxRune+1)
	for _, t := range []struct {
		set  class
		from *unicode.RangeTable
	}{
		{letter, unicode.L}, {number, unicode.N}, {space, unicode.White_Space}, {mark, unicode.M},
		{upper, unicode.Lu}, {upper, unicode.Lt}, {upper | lower, unicode.Lm},
		{upper | lower, unicode.Lo}, {lower, unicode.Ll}, {upper | lower, unicode.M},
		{letter | upper | lower, unicode15dot1},
	} {
		spread(flat, t.from, t.set)
	}
	return flat
}

func spread(flat []class, t *unicode.RangeTable, set class) {
	for _, r := range t.R16 {
		for c := uint32(r.Lo); c <= uint32(r.Hi); c += uint32(r.Stride) {
			flat[c] |= set
		}
	}
	for _, r := range t.R32 {
		for c := r.Lo; c <= r.Hi; c += r.Stride {
			flat[c] |= set
		}
	}
}

// unicode15dot1 are the letters that llama.cpp and Hugging Face know and Go's
// tables (Unicode 15.0) don't.
var unicode15dot1 = &unicode.RangeTable{R32: []unicode.Range32{{Lo: 0x2ebf0, Hi: 0x2ee5d, Stride: 1}}}

func unicodeClass(_ rune, c class) class { return c }

func llamaClass(r rune, c class) class {
	c &^= upper | lower
	if c&letter == 0 {
		return c
	}
	if r < 'a' || r > 'z' {
		c |= upper
	}
	if r < 'A' || r > 'Z' {
		c |= lower
	}
	return c
}

// clean returns b with each byte that is not UTF-8 replaced by U+FFFD, which is
// what the tokenizers themselves do.
func clean(b []byte) []byte {
	if utf8.Valid(b) {
		return b
	}
	out := make([]byte, 0, len(b)+8)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		out = utf8.AppendRune(out, r)
		b = b[n:]
	}
	return out
}
