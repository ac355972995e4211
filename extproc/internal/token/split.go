package token

import "unicode/utf8"

// splitter is a pre-tokenizer: it cuts a text into the words within which bytes
// are merged. next returns the length of the first word of b, which is valid
// UTF-8 and not empty; the result is 1 or more.
type splitter interface {
	next(b []byte) int
}

// gpt2 is the pattern of GPT-2 and its kin:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// With digits each number character is split off first, as SmolLM2 has it:
// the text around it is cut as if it ended there.
type gpt2 struct {
	*classes
	digits bool
}

func (s gpt2) next(b []byte) int {
	if n := contraction(b, false, false); n > 0 {
		return n
	}
	c, n := s.at(b)
	if s.digits && c&number != 0 {
		return n
	}
	start := n // where the run starts after an optional space
	if b[0] == ' ' {
		c, n = s.at(b[1:])
		if n == 0 || s.digits && c&number != 0 {
			return 1
		}
		start = 1 + n
	}
	if kind := c & (letter | number | space); kind&space == 0 {
		return s.run(b, start, kind)
	}
	return s.blank(b)
}

// run extends a word while characters are of one kind.
func (s gpt2) run(b []byte, i int, kind class) int {
	if kind == letter {
		i += asciiLetters(b[i:])
	}
	for i < len(b) {
		if x := b[i]; x < utf8.RuneSelf {
			if s.ascii[x]&(letter|number|space) != kind {
				return i
			}
			i++
			continue
		}
		c, n := s.at(b[i:])
		if c&(letter|number|space) != kind {
			return i
		}
		i += n
	}
	return i
}

// blank cuts a run of white space. Its last character stays with the next word
// unless the text ends there.
func (s gpt2) blank(b []byte) int {
	end, last, next := s.spaces(b)
	if end == len(b) || last == end || s.digits && next&number != 0 {
		return end
	}
	return end - last
}

// spaces measures the white space at the start of b: its length, the width of
// its last character (all of it if there is only one) and the class after it.
func (c *classes) spaces(b []byte) (end, last int, next class) {
	for {
		k, n := c.at(b[end:])
		if k&space == 0 {
			return end, last, k
		}
		last = n
		end += n
	}
}

// contraction returns the length of the English ending at the start of b: 's,
// 't, 're, 've, 'm, 'll, 'd. Folded, capitals count, and with long the ſ that
// Unicode folds to s.
func contraction(b []byte, fold, long bool) int {
	if b[0] != '\'' || len(b) < 2 {
		return 0
	}
	x, y := b[1], byte(0)
	if len(b) > 2 {
		y = b[2]
	}
	if fold {
		x, y = lowered(x), lowered(y)
	}
	switch {
	case x == 's' || x == 't' || x == 'm' || x == 'd':
		return 2
	case x == 'r' && y == 'e', x == 'v' && y == 'e', x == 'l' && y == 'l':
		return 3
	case long && x == 0xc5 && len(b) > 2 && b[2] == 0xbf:
		return 3
	}
	return 0
}

func lowered(x byte) byte {
	if x >= 'A' && x <= 'Z' {
		return x + 'a' - 'A'
	}
	return x
}

// cl100k is the pattern of GPT-4, Llama 3 and Qwen2, which differ in how many
// digits make a word:
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//	 ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
type cl100k struct {
	*classes
	digits int   // the most digits in a word
	letter class // what counts as a letter: letter, for Qwen3.5 also mark
	long   bool  // whether 'ſ is an ending
}

func (s cl100k) next(b []byte) int {
	if n := contraction(b, true, s.long); n > 0 {
		return n
	}
	c, n := s.at(b)
	if c&s.letter != 0 {
		return s.while(b, n, s.letter)
	}
	if c&number != 0 {
		return s.upTo(b, n, s.digits)
	}
	if b[0] != '\r' && b[0] != '\n' {
		if d, m := s.at(b[n:]); d&s.letter != 0 {
			return s.while(b, n+m, s.letter)
		}
	}
	if end := s.others(b, s.letter, false); end > 0 {
		return end
	}
	return s.blank(b)
}

// while extends a word while characters have one of the classes.
func (c *classes) while(b []byte, i int, set class) int {
	if set&letter != 0 {
		i += asciiLetters(b[i:])
	}
	for i < len(b) {
		if x := b[i]; x < utf8.RuneSelf {
			if c.ascii[x]&set == 0 {
				return i
			}
			i++
			continue
		}
		k, n := c.at(b[i:])
		if k&set == 0 {
			return i
		}
		i += n
	}
	return i
}

// upTo extends a word of digits, the first of them read, to at most limit.
func (c *classes) upTo(b []byte, i, limit int) int {
	for n := 1; n < limit; n++ {
		k, w := c.at(b[i:])
		if k&number == 0 {
			return i
		}
		i += w
	}
	return i
}

// others returns the length of " ?[^\s\p{L}\p{N}]+[\r\n]*", 0 if it doesn't
// match. With slash the end may hold slashes too.
func (c *classes) others(b []byte, letter class, slash bool) int {
	i := 0
	if b[0] == ' ' {
		i = 1
	}
	start := i
	for {
		k, n := c.at(b[i:])
		if n == 0 || k&(letter|number|space) != 0 {
			break
		}
		i += n
	}
	if i == start {
		return 0
	}
	for i < len(b) && (b[i] == '\r' || b[i] == '\n' || slash && b[i] == '/') {
		i++
	}
	return i
}

// blank cuts white space as "\s*[\r\n]+|\s+(?!\S)|\s+" does: after the last
// line end, else before the last character.
func (c *classes) blank(b []byte) int {
	end, last, _ := c.spaces(b)
	for i := end; i > 0; i-- {
		if b[i-1] == '\r' || b[i-1] == '\n' {
			return i
		}
	}
	if end == len(b) || last == end {
		return max(end, 1)
	}
	return end - last
}

// o200k is the pattern of GPT-4o and, without endings and with single digits,
// of Mistral's Tekken:
//
//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|…)?|
//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|…)?|
//	\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
type o200k struct {
	*classes
	digits  int  // the most digits in a word
	endings bool // whether English endings stay with their word
	long    bool // whether 'ſ is an ending
}

func (s o200k) next(b []byte) int {
	if end := s.word(b); end > 0 {
		return end
	}
	c, n := s.at(b)
	if c&number != 0 {
		return s.upTo(b, n, s.digits)
	}
	if end := s.others(b, letter, true); end > 0 {
		return end
	}
	return s.blank(b)
}

// word matches the first two alternatives; 0 if neither does.
func (s o200k) word(b []byte) int {
	c, n := s.at(b)
	prefix := 0
	if c&(letter|number) == 0 && b[0] != '\r' && b[0] != '\n' {
		prefix = n
	}
	end := s.small(b, prefix)
	if end == 0 && prefix > 0 {
		end = s.small(b, 0) // a mark is a prefix and a letter
	}
	if end == 0 {
		end = s.capitals(b, prefix)
	}
	if end == 0 && prefix > 0 {
		end = s.capitals(b, 0)
	}
	if end > 0 && s.endings && end < len(b) {
		end += contraction(b[end:], true, s.long)
	}
	return end
}

// small matches capitals, then at least one small letter. A regular expression
// gives back capitals until the last can serve as the small letter.
func (s o200k) small(b []byte, from int) int {
	i, both := from, 0
	for {
		c, n := s.at(b[i:])
		if c&upper == 0 {
			break
		}
		i += n
		if c&lower != 0 {
			both = i
		}
	}
	if end := s.while(b, i, lower); end > i {
		return end
	}
	return both
}

// capitals matches one capital or more. No small letter can follow: small
// would have matched.
func (s o200k) capitals(b []byte, from int) int {
	if end := s.while(b, from, upper); end > from {
		return end
	}
	return 0
}
