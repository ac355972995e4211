package openai

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// maxDepth bounds the nesting of a body, and with it the scanner's stack.
const maxDepth = 512

// scanner walks over JSON, checking it as it goes. Each method starts at the
// first byte of what it reads, ends behind it, and returns false with i at the
// byte at fault.
type scanner struct {
	b []byte
	i int
}

// text is the inside of a JSON string.
type text struct {
	raw     []byte // between the quotes, as sent
	escaped bool   // whether raw holds escapes
}

// peek returns the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// space moves past white space.
func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// string moves past a string.
func (s *scanner) string() (text, bool) {
	if s.peek() != '"' {
		return text{}, false
	}
	s.i++
	start, escaped := s.i, false
	if n := bytes.IndexByte(s.b[start:], '"'); n >= 0 && allOrdinary(s.b[start:start+n]) {
		s.i = start + n + 1
		return text{s.b[start : start+n], false}, true
	}
	for {
		s.i += ordinary(s.b[s.i:])
		switch s.peek() {
		case '"':
			s.i++
			return text{s.b[start : s.i-1], escaped}, true
		case '\\':
			escaped = true
			if !s.escape() {
				return text{}, false
			}
		default:
			return text{}, false
		}
	}
}

// escape moves past one escape sequence.
func (s *scanner) escape() bool {
	if s.i+1 >= len(s.b) {
		s.i = len(s.b)
		return false
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
		if s.i+6 > len(s.b) {
			return false
		}
		if _, ok := hex4(s.b[s.i+2 : s.i+6]); !ok {
			return false
		}
		s.i += 6
		return true
	default:
		return false
	}
}

// odd sets the high bit of the first byte that is not ordinary. In (x-k)&^x it
// is set if the byte is below k; a borrow can only spoil bytes behind a true one.
// With bit 1 turned the controls stay below 0x20 and the quote becomes 0x20.
func odd(w uint64) uint64 {
	low, slash := w^(ones*2), w^(ones*'\\')
	return ((low-ones*0x21)&^low | (slash-ones)&^slash) & highs
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// allOrdinary reports whether all bytes of b, which holds no quote, are ordinary in a string. It is
// faster than ordinary, which finds the first that is not.
func allOrdinary(b []byte) bool {
	if bytes.IndexByte(b, '\\') >= 0 {
		return false
	}
	low := uint64(0) // see odd
	for ; len(b) >= 32; b = b[32:] {
		w, x := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		y, z := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
		low |= (w-ones*0x20)&^w | (x-ones*0x20)&^x | (y-ones*0x20)&^y | (z-ones*0x20)&^z
	}
	return low&highs == 0 && ordinary(b) == len(b)
}

// ordinary returns how many leading bytes of b are ordinary in a string: neither
// quote, backslash nor control. Sixteen at a time, then eight.
func ordinary(b []byte) int {
	i := 0
	for ; i+16 <= len(b); i += 16 {
		if odd(binary.LittleEndian.Uint64(b[i:]))|odd(binary.LittleEndian.Uint64(b[i+8:])) != 0 {
			break
		}
	}
	for ; i+8 <= len(b); i += 8 {
		if m := odd(binary.LittleEndian.Uint64(b[i:])); m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c == '"' || c == '\\' || c < 0x20 {
			break
		}
	}
	return i
}

// skip moves past any value.
func (s *scanner) skip(depth int) bool {
	switch c := s.peek(); c {
	case '"':
		_, ok := s.string()
		return ok
	case '{':
		return s.object(depth, func(text) bool { return s.skip(depth + 1) })
	case '[':
		return s.array(depth, func() bool { return s.skip(depth + 1) })
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		return s.number()
	}
}

// word moves past a literal.
func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

// number moves past a number.
func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.i++
		if !s.digits() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		return s.digits()
	}
	return true
}

// digits moves past one digit or more.
func (s *scanner) digits() bool {
	start := s.i
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.i++
	}
	return s.i > start
}

// object moves past an object and calls value at the start of each value, which
// value must move past.
func (s *scanner) object(depth int, value func(key text) bool) bool {
	if s.peek() != '{' || depth >= maxDepth {
		return false
	}
	s.i++
	s.space()
	if s.peek() == '}' {
		s.i++
		return true
	}
	for {
		key, ok := s.string()
		if !ok {
			return false
		}
		if s.space(); s.peek() != ':' {
			return false
		}
		s.i++
		if s.space(); !value(key) {
			return false
		}
		if done, ok := s.next('}'); done || !ok {
			return ok
		}
	}
}

// array moves past an array and calls value at the start of each element, which
// value must move past.
func (s *scanner) array(depth int, value func() bool) bool {
	if s.peek() != '[' || depth >= maxDepth {
		return false
	}
	s.i++
	s.space()
	if s.peek() == ']' {
		s.i++
		return true
	}
	for {
		if !value() {
			return false
		}
		if done, ok := s.next(']'); done || !ok {
			return ok
		}
	}
}

// next moves past the comma before the next element, or past the closing byte.
func (s *scanner) next(closing byte) (done, ok bool) {
	s.space()
	switch s.peek() {
	case closing:
		s.i++
		return true, true
	case ',':
		s.i++
		s.space()
		return false, true
	default:
		return false, false
	}
}
