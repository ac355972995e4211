package token

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// quickLen is how many bytes a text must have for quickWord.
const quickLen = 16

// quickWord cuts off the word that most words of a text are like: letters of ASCII, behind
// a space or not, before something else of ASCII, of maxCached bytes at most. All splitters
// cut such a word alike, but that of o200k, which also cuts before capitals and keeps an
// English ending: cased leaves these words to it. n is 0 if the text, of quickLen bytes or
// more, begins otherwise.
func quickWord(text []byte, cased bool) (k key, n int) {
	low, high := binary.LittleEndian.Uint64(text), binary.LittleEndian.Uint64(text[8:])
	a, b := lettersOf(low), lettersOf(high)
	first := 0
	if text[0] == ' ' {
		first = 1
		a |= 1 << 7
	}
	if others := ^a & highs; others != 0 {
		n = bits.TrailingZeros64(others) / 8
	} else if others := ^b & highs; others != 0 {
		n = 8 + bits.TrailingZeros64(others)/8
	}
	end := text[n&15]
	if n <= first || end >= utf8.RuneSelf {
		return key{}, 0
	}
	m := &masks[n&15]
	if cased {
		// Capitals lack the bit that small letters have.
		capitals := (a &^ (low << 2) & m.low &^ (1 << (8*first + 7))) | (b &^ (high << 2) & m.high)
		if capitals != 0 || end == '\'' {
			return key{}, 0
		}
	}
	return key{low & m.low, high&m.high | uint64(n)<<60}, n
}

// lettersOf sets the high bit of each byte of w that is a letter of ASCII, and no other bit:
// small letters and capitals differ in one bit, and a sum sets a byte's high bit from a
// bound on.
func lettersOf(w uint64) uint64 {
	x := (w | ones*0x20) &^ highs
	return (x + ones*(0x80-'a')) &^ (x + ones*(0x80-'z'-1)) &^ w & highs
}

// seams knows between which characters no merge rule reaches: a word may be merged in parts
// that such a place separates. Texts of other scripts than Latin have long words, and
// vocabularies few rules for them. It compares two bytes on each side of a place, of which
// the first behind it begins a character beyond ASCII. A place is no seam if what a rule
// makes may lie across it: it is found by what it has of these four bytes, which is less
// near its ends.
type seams struct {
	// pairs are those of the two bytes at the place. The others are what is to be there: bare
	// the pair alone, left and right with the byte before or behind it, both with both.
	pairs, bare, left, right, both bitmap
}

// bitmap is a set of hashes.
type bitmap [1 << 10]uint64

func (b *bitmap) add(h uint32)      { b[h>>6&(1<<10-1)] |= 1 << (h & 63) }
func (b *bitmap) has(h uint32) bool { return b[h>>6&(1<<10-1)]>>(h&63)&1 != 0 }

// around names up to four bytes.
func around(a, x, y, b byte) uint32 {
	return (uint32(a)<<24 | uint32(x)<<16 | uint32(y)<<8 | uint32(b)) * 0x9e3779b1 >> 16
}

// pairAt names the two bytes at a place.
func pairAt(x, y byte) uint32 { return uint32(x)<<8 | uint32(y) }

// add takes in what a rule makes, as plain bytes.
func (s *seams) add(made []byte) {
	for i := 1; i < len(made); i++ {
		x, y := made[i-1], made[i]
		if y < runeLead {
			continue
		}
		s.pairs.add(pairAt(x, y))
		switch begins, ends := i == 1, i+1 == len(made); {
		case begins && ends:
			s.bare.add(pairAt(x, y))
		case begins:
			s.right.add(around(0, x, y, made[i+1]))
		case ends:
			s.left.add(around(made[i-2], x, y, 0))
		default:
			s.both.add(around(made[i-2], x, y, made[i+1]))
		}
	}
}

// runeLead is the least byte that a character beyond ASCII begins with.
const runeLead = 0xc0

// next returns where the first part of a word ends.
func (s *seams) next(word []byte) int {
	for i := 1; i < len(word); i++ {
		if word[i] >= runeLead && !s.crossed(word, i) {
			return i
		}
	}
	return len(word)
}

// crossed reports whether a rule may reach over the place before word[i].
func (s *seams) crossed(word []byte, i int) bool {
	x, y := word[i-1], word[i]
	if !s.pairs.has(pairAt(x, y)) {
		return false
	}
	var a, b byte
	before, behind := i >= 2, i+1 < len(word)
	if before {
		a = word[i-2]
	}
	if behind {
		b = word[i+1]
	}
	return s.bare.has(pairAt(x, y)) || before && s.left.has(around(a, x, y, 0)) ||
		behind && s.right.has(around(0, x, y, b)) || before && behind && s.both.has(around(a, x, y, b))
}
