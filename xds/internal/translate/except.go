package translate

import (
	"regexp"
	"slices"
	"strings"
)

// except returns a regular expression for every name that begins with prefix and
// is none of names. Envoy's expressions (RE2) can't say "but not", so it spells
// out where a name may leave the paths of all others: a tree over their letters.
func except(prefix string, names ...string) string {
	var rests []string
	for _, n := range names {
		if rest, ok := strings.CutPrefix(strings.ToLower(n), prefix); ok {
			rests = append(rests, rest)
		}
	}
	return regexp.QuoteMeta(prefix) + other(rests)
}

// other returns an expression for every text that is none of words.
func other(words []string) string {
	if len(words) == 0 {
		return ".*"
	}
	var first []byte // letters that begin a word
	for _, w := range words {
		if w != "" && !slices.Contains(first, w[0]) {
			first = append(first, w[0])
		}
	}
	slices.Sort(first)
	var ways []string
	if !slices.Contains(words, "") {
		ways = append(ways, "")
	}
	if len(first) == 0 {
		return "(?:.+)"
	}
	var class strings.Builder
	for _, c := range first {
		class.WriteString(`\x`)
		class.WriteString(hex(c))
		var rests []string
		for _, w := range words {
			if w != "" && w[0] == c {
				rests = append(rests, w[1:])
			}
		}
		ways = append(ways, regexp.QuoteMeta(string(c))+other(rests))
	}
	ways = append(ways, "[^"+class.String()+"].*")
	return "(?:" + strings.Join(ways, "|") + ")"
}

func hex(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}
