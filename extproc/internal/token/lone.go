package token

// kind is what of a byte decides whether it is a word of its own.
type kind uint8

const (
	other   kind = iota // white space and controls, and all beyond ASCII
	alpha               // a letter of ASCII
	digit               // a digit of ASCII
	sign                // what else of ASCII is printed
	gap                 // a space
	newline             // a line feed
	kinds
)

// kindOf is the kind of each byte.
var kindOf = func() (all [256]kind) {
	for b := range byte(0x7f) {
		switch {
		case b == '\n':
			all[b] = newline
		case b == ' ':
			all[b] = gap
		case b < ' ':
		case b >= '0' && b <= '9':
			all[b] = digit
		case b|0x20 >= 'a' && b|0x20 <= 'z':
			all[b] = alpha
		default:
			all[b] = sign
		}
	}
	return all
}()

// lone says of which kind the byte behind must be for one at the start of a word to be all of
// it, by its own kind: a set of kinds, as bits.
type lone [kinds]uint8

// loneOf returns what is so with a splitter. Of the commonest such words it spares to ask the
// splitter. The rules that hold for all splitters stand here; the others are asked of this one.
func loneOf(s splitter) (l lone) {
	const ascii = 1<<alpha | 1<<digit | 1<<sign
	l[sign] = 1 << gap // only white space that ends lines may belong to it, and what is no white space
	l[newline] = ascii // white space that something follows
	if s.next([]byte("00")) == 1 {
		l[digit] = 1<<kinds - 1 // numbers are cut into digits
	}
	if s.next([]byte(" 0")) == 1 {
		l[gap] = 1 << digit
	}
	return l
}

// is reports whether a, at the start of a word, is all of it if b follows. That it is not may
// be wrong.
func (l *lone) is(a, b byte) bool { return l[kindOf[a]]>>kindOf[b]&1 != 0 }
