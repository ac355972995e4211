package openai

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// unescape appends the text that a checked JSON string stands for. A surrogate
// without its partner becomes U+FFFD.
func unescape(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i]...)
		raw = raw[i+1:]
		if raw[0] == 'u' {
			var r rune
			r, raw = codepoint(raw[1:])
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, letterEscape(raw[0]))
		raw = raw[1:]
	}
}

// letterEscape returns the byte that a one-letter escape stands for.
func letterEscape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	default:
		return c
	}
}

// codepoint reads the four digits of a \u escape, and its partner if it is the
// first half of a pair.
func codepoint(raw []byte) (rune, []byte) {
	r, _ := hex4(raw[:4])
	raw = raw[4:]
	if !utf16.IsSurrogate(r) {
		return r, raw
	}
	if len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
		low, _ := hex4(raw[2:6])
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, raw[6:]
		}
	}
	return utf8.RuneError, raw
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (rune, bool) {
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
