package jinja

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

type textFunc func(e *exec, s string, a *args) any

// stringMethods are those of Python's str.
var stringMethods = map[string]methodFunc{
	"capitalize": onText(func(e *exec, s string, a *args) any { return none(e, a, capitalize(s)) }),
	"casefold":   onText(func(e *exec, s string, a *args) any { return none(e, a, casefold(s)) }),
	"lower":      onText(func(e *exec, s string, a *args) any { return none(e, a, lower(s)) }),
	"upper":      onText(func(e *exec, s string, a *args) any { return none(e, a, upper(s)) }),
	"swapcase":   onText(func(e *exec, s string, a *args) any { return none(e, a, swapcase(s)) }),
	"title":      onText(func(e *exec, s string, a *args) any { return none(e, a, title(s)) }),

	"isalnum":      check(func(r rune) bool { return unicode.IsLetter(r) || numeric(r) }),
	"isalpha":      check(unicode.IsLetter),
	"isdecimal":    check(func(r rune) bool { return unicode.Is(unicode.Nd, r) }),
	"isdigit":      check(func(r rune) bool { return numeric(r) }),
	"isnumeric":    check(func(r rune) bool { return numeric(r) }),
	"isspace":      check(IsSpace),
	"isascii":      onText(func(e *exec, s string, a *args) any { return none(e, a, isASCII(s)) }),
	"isprintable":  onText(func(e *exec, s string, a *args) any { return none(e, a, strings.IndexFunc(s, unprintable) < 0) }),
	"isidentifier": onText(func(e *exec, s string, a *args) any { return none(e, a, identifier(s)) }),
	"islower":      onText(func(e *exec, s string, a *args) any { return none(e, a, cased(s, isLower, isUpper)) }),
	"isupper":      onText(func(e *exec, s string, a *args) any { return none(e, a, cased(s, isUpper, isLower)) }),
	"istitle":      onText(func(e *exec, s string, a *args) any { return none(e, a, istitle(s)) }),

	"strip":  onText(func(e *exec, s string, a *args) any { return e.strip(s, a, true, true) }),
	"lstrip": onText(func(e *exec, s string, a *args) any { return e.strip(s, a, true, false) }),
	"rstrip": onText(func(e *exec, s string, a *args) any { return e.strip(s, a, false, true) }),

	"split": onText(split), "rsplit": onText(rsplit), "splitlines": onText(splitlinesMethod),
	"partition": onText(partition), "rpartition": onText(rpartition),
	"removeprefix": onText(func(e *exec, s string, a *args) any { return strings.TrimPrefix(s, e.oneText(a, "removeprefix")) }),
	"removesuffix": onText(func(e *exec, s string, a *args) any { return strings.TrimSuffix(s, e.oneText(a, "removesuffix")) }),
	"startswith":   onText(func(e *exec, s string, a *args) any { return e.affix(s, a, strings.HasPrefix) }),
	"endswith":     onText(func(e *exec, s string, a *args) any { return e.affix(s, a, strings.HasSuffix) }),

	"find":   onText(func(e *exec, s string, a *args) any { return e.find(s, a, strings.Index, false) }),
	"rfind":  onText(func(e *exec, s string, a *args) any { return e.find(s, a, strings.LastIndex, false) }),
	"index":  onText(func(e *exec, s string, a *args) any { return e.find(s, a, strings.Index, true) }),
	"rindex": onText(func(e *exec, s string, a *args) any { return e.find(s, a, strings.LastIndex, true) }),
	"count":  onText(countText),

	"replace": onText(replace), "join": onText(join), "format": onText(format),
	"center": onText(func(e *exec, s string, a *args) any { return e.pad(s, a, "center") }),
	"ljust":  onText(func(e *exec, s string, a *args) any { return e.pad(s, a, "ljust") }),
	"rjust":  onText(func(e *exec, s string, a *args) any { return e.pad(s, a, "rjust") }),
	"zfill":  onText(zfill),
}

func onText(f textFunc) methodFunc {
	return func(e *exec, self any, a *args) any {
		s := self.(string)
		e.spend(len(s))
		return f(e, s, a)
	}
}

// none is the result of a method without arguments.
func none(e *exec, a *args, result any) any {
	e.positional(a, "the method")
	return result
}

// check is a method that says whether all characters are of a kind, and there are any.
func check(is func(rune) bool) methodFunc {
	return onText(func(e *exec, s string, a *args) any {
		return none(e, a, s != "" && strings.IndexFunc(s, func(r rune) bool { return !is(r) }) < 0)
	})
}

// numeric is whether a character is a digit. Others that stand for numbers are refused.
func numeric(r rune) bool {
	if r < utf8.RuneSelf || unicode.Is(unicode.Nd, r) {
		return unicode.Is(unicode.Nd, r)
	}
	if unicode.IsNumber(r) || unicode.Is(unicode.Han, r) {
		throw(ErrUnsupported, "whether %q is a number", r)
	}
	return false
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

func unprintable(r rune) bool { return !printable(r) }

func identifier(s string) bool {
	if !isASCII(s) {
		throw(ErrUnsupported, "isidentifier() of %s", quoteShort(s))
	}
	return s != "" && (s[0] < '0' || s[0] > '9') && strings.IndexFunc(s, func(r rune) bool { return !wordByte(byte(r)) }) < 0
}

func isLower(r rune) bool { return unicode.IsLower(r) || unicode.Is(unicode.Other_Lowercase, r) }
func isUpper(r rune) bool { return unicode.IsUpper(r) || unicode.Is(unicode.Other_Uppercase, r) }

// cased is whether a text has characters of one case and none of the other.
func cased(s string, is, isNot func(rune) bool) bool {
	found := false
	for _, r := range s {
		if isNot(r) || unicode.IsTitle(r) {
			return false
		}
		found = found || is(r)
	}
	return found
}

// mapsSimply is whether a character's cases are those that Go has for it: in other
// alphabets one may become several, or depend on what stands around it.
func mapsSimply(r rune) bool {
	switch {
	case r < utf8.RuneSelf:
		return true
	case r == 'ß' || r == 'ŉ' || r == 'İ' || r == 'ı' || r == 'ſ' || r == 'µ':
		return false
	case r >= 0xa0 && r <= 0x17e, r >= 0x400 && r <= 0x45f:
		return true
	}
	return !isLower(r) && !isUpper(r) && !unicode.IsTitle(r) && unicode.ToUpper(r) == r && unicode.ToLower(r) == r
}

func checkCases(s string) {
	for _, r := range s {
		if !mapsSimply(r) {
			throw(ErrUnsupported, "the case of %q", r)
		}
	}
}

func lower(s string) string {
	checkCases(s)
	return strings.ToLower(s)
}

func upper(s string) string {
	checkCases(s)
	return strings.ToUpper(s)
}

func casefold(s string) string {
	if !isASCII(s) {
		throw(ErrUnsupported, "casefold() of %s", quoteShort(s))
	}
	return strings.ToLower(s)
}

func capitalize(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return upper(s[:n]) + lower(s[n:])
}

func swapcase(s string) string {
	checkCases(s)
	return strings.Map(func(r rune) rune {
		if isUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

func title(s string) string {
	checkCases(s)
	within := false
	return strings.Map(func(r rune) rune {
		was := within
		within = isLower(r) || isUpper(r)
		if was {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

func istitle(s string) bool {
	within, found := false, false
	for _, r := range s {
		switch {
		case unicode.IsTitle(r):
			throw(ErrUnsupported, "the case of %q", r)
		case isUpper(r):
			if within {
				return false
			}
			within, found = true, true
		case isLower(r):
			if !within {
				return false
			}
			found = true
		default:
			within = false
		}
	}
	return found
}

// blank is what strip takes by itself.
func (e *exec) blank(r rune) bool {
	if e.options.ASCII {
		return strings.ContainsRune(" \t\n\v\f\r", r)
	}
	return IsSpace(r)
}

func (e *exec) strip(s string, a *args, left, right bool) any {
	b := e.positional(a, "strip", "chars=")
	return e.stripped(s, given(b[0], nil), left, right)
}

func (e *exec) stripped(s string, chars any, left, right bool) string {
	is := e.blank
	if chars != nil {
		set := e.mustText(chars)
		is = func(r rune) bool { return strings.ContainsRune(set, r) }
	}
	if left {
		s = strings.TrimLeftFunc(s, is)
	}
	if right {
		s = strings.TrimRightFunc(s, is)
	}
	return s
}

func (e *exec) mustText(v any) string {
	s, ok := text(v)
	if !ok {
		throw(errType, "a value of type %s, where text must be", typeName(v))
	}
	if _, m := v.(markup); m {
		throw(ErrUnsupported, "text that is marked as safe as an argument")
	}
	e.spend(len(s) / 8)
	return s
}

func (e *exec) oneText(a *args, name string) string {
	return e.mustText(e.positional(a, name, "text")[0])
}

func (e *exec) listOf(parts []string) any {
	out := make([]any, len(parts))
	for i, p := range parts {
		out[i] = p
	}
	e.spend(2 * step * len(parts))
	return newList(out)
}

// separator and limit of a split; limit < 0: none.
func (e *exec) cuts(a *args) (sep string, blank bool, limit int) {
	b := e.bind(a, "split", "sep=", "maxsplit=")
	limit = -1
	if b[1] != missing {
		limit = int(e.mustIndex(b[1]))
	}
	if b[0] == missing || b[0] == nil {
		return "", true, limit
	}
	sep = e.mustText(b[0])
	if sep == "" {
		throw(errValue, "a split by nothing")
	}
	return sep, false, limit
}

func split(e *exec, s string, a *args) any {
	sep, blank, limit := e.cuts(a)
	switch {
	case !blank && limit < 0:
		return e.listOf(strings.Split(s, sep))
	case !blank:
		return e.listOf(strings.SplitN(s, sep, limit+1))
	}
	var out []string
	for s = strings.TrimLeftFunc(s, IsSpace); s != ""; s = strings.TrimLeftFunc(s, IsSpace) {
		i := strings.IndexFunc(s, IsSpace)
		if i < 0 || limit == 0 {
			i = len(s)
		}
		out = append(out, s[:i])
		s = s[i:]
		limit--
	}
	return e.listOf(out)
}

func rsplit(e *exec, s string, a *args) any {
	sep, blank, limit := e.cuts(a)
	var out []string
	if blank {
		for s = strings.TrimRightFunc(s, IsSpace); s != ""; s = strings.TrimRightFunc(s, IsSpace) {
			i := strings.LastIndexFunc(s, IsSpace)
			if i < 0 || limit == 0 {
				i = 0
			} else {
				_, n := utf8.DecodeRuneInString(s[i:])
				i += n
			}
			out = append(out, s[i:])
			s = s[:i]
			limit--
		}
		slices.Reverse(out)
		return e.listOf(out)
	}
	for ; limit != 0; limit-- {
		i := strings.LastIndex(s, sep)
		if i < 0 {
			break
		}
		out = append(out, s[i+len(sep):])
		s = s[:i]
	}
	out = append(out, s)
	slices.Reverse(out)
	return e.listOf(out)
}

func endsLine(r rune) bool {
	switch r {
	case '\n', '\r', '\v', '\f', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
		return true
	}
	return false
}

func splitlines(s string, keep bool) (out []string) {
	for s != "" {
		i := strings.IndexFunc(s, endsLine)
		if i < 0 {
			return append(out, s)
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		if strings.HasPrefix(s[i:], "\r\n") {
			n = 2
		}
		if keep {
			out = append(out, s[:i+n])
		} else {
			out = append(out, s[:i])
		}
		s = s[i+n:]
	}
	return out
}

func splitlinesMethod(e *exec, s string, a *args) any {
	b := e.bind(a, "splitlines", "keepends=")
	return e.listOf(splitlines(s, e.isTrue(given(b[0], false))))
}

func partition(e *exec, s string, a *args) any {
	sep := e.separator(a)
	if before, after, ok := strings.Cut(s, sep); ok {
		return &tuple{[]any{before, sep, after}}
	}
	return &tuple{[]any{s, "", ""}}
}

func rpartition(e *exec, s string, a *args) any {
	sep := e.separator(a)
	if i := strings.LastIndex(s, sep); i >= 0 {
		return &tuple{[]any{s[:i], sep, s[i+len(sep):]}}
	}
	return &tuple{[]any{"", "", s}}
}

func (e *exec) separator(a *args) string {
	sep := e.oneText(a, "partition")
	if sep == "" {
		throw(errValue, "a split by nothing")
	}
	return sep
}

// part is the text between two optional indices, and how many characters are
// before it. ok is false if start is behind its end.
func (e *exec) part(s string, start, stop any) (part string, before int64, ok bool) {
	if start == missing && stop == missing {
		return s, 0, true
	}
	n := int64(runeCount(s))
	bound := func(v any, otherwise int64) int64 {
		if v == missing || v == nil {
			return otherwise
		}
		i := e.mustIndex(v)
		if i < 0 {
			return max(i+n, 0)
		}
		return i
	}
	from, to := bound(start, 0), min(bound(stop, n), n)
	if from > to {
		return "", 0, false
	}
	at := byteAt(s, int(from))
	return s[at : at+byteAt(s[at:], int(to-from))], from, true
}

func (e *exec) affix(s string, a *args, has func(s, affix string) bool) any {
	b := e.positional(a, "startswith", "affix", "start=", "end=")
	part, _, ok := e.part(s, b[1], b[2])
	if t, isTuple := b[0].(*tuple); isTuple {
		for _, v := range t.items {
			if has(part, e.mustText(v)) && ok {
				return true
			}
		}
		return false
	}
	return has(part, e.mustText(b[0])) && ok
}

func (e *exec) find(s string, a *args, in func(s, part string) int, must bool) any {
	b := e.positional(a, "find", "text", "start=", "end=")
	sub := e.mustText(b[0])
	part, before, ok := e.part(s, b[1], b[2])
	if ok {
		if i := in(part, sub); i >= 0 {
			return before + int64(runeCount(part[:i]))
		}
	}
	if must {
		throw(errValue, "index() of what is not there")
	}
	return int64(-1)
}

func countText(e *exec, s string, a *args) any {
	b := e.positional(a, "count", "text", "start=", "end=")
	sub := e.mustText(b[0])
	part, _, ok := e.part(s, b[1], b[2])
	if !ok {
		return int64(0)
	}
	return int64(strings.Count(part, sub))
}

func replace(e *exec, s string, a *args) any {
	b := e.positional(a, "replace", "old", "new", "count=")
	count := -1
	if b[2] != missing {
		count = int(e.mustIndex(b[2]))
	}
	return e.replaced(s, e.mustText(b[0]), e.mustText(b[1]), count)
}

func (e *exec) replaced(s, old, substitute string, count int) string {
	if len(substitute) > len(old) {
		e.spend(len(substitute) * min(strings.Count(s, old), maxSpent))
	}
	return strings.Replace(s, old, substitute, count)
}

func join(e *exec, s string, a *args) any {
	b := e.positional(a, "join", "iterable")
	return e.joined(s, e.collect(b[0]), e.mustText)
}

func (e *exec) joined(sep string, all []any, convert func(any) string) string {
	var out []byte
	for i, v := range all {
		if i > 0 {
			out = append(out, sep...)
		}
		out = append(out, convert(v)...)
		e.spend(len(sep) + step)
	}
	e.spend(len(out))
	return string(out)
}

func (e *exec) pad(s string, a *args, name string) any {
	b := e.positional(a, name, "width", "fill=")
	fill := e.mustText(given(b[1], " "))
	if runeCount(fill) != 1 {
		throw(errType, "%s() with %d characters", name, runeCount(fill))
	}
	return e.padded(s, e.mustIndex(b[0]), fill, name)
}

func (e *exec) padded(s string, width int64, fill, name string) string {
	n := width - int64(runeCount(s))
	if n <= 0 {
		return s
	}
	if n > maxSpent {
		throw(ErrLimit, "%s() of %d characters", name, width)
	}
	e.spend(int(n) * len(fill))
	left := int64(0)
	switch name {
	case "rjust":
		left = n
	case "center":
		left = n/2 + n&width&1
	}
	return strings.Repeat(fill, int(left)) + s + strings.Repeat(fill, int(n-left))
}

func zfill(e *exec, s string, a *args) any {
	b := e.positional(a, "zfill", "width")
	sign := ""
	if s != "" && (s[0] == '-' || s[0] == '+') {
		sign = s[:1]
	}
	return sign + e.padded(s[len(sign):], e.mustIndex(b[0])-int64(len(sign)), "0", "rjust")
}
