package cachelog

import (
	"fmt"
	"strconv"
	"strings"
)

// Link is a beginning of a prompt.
type Link struct {
	// Key is its hash.
	Key uint64
	// Tokens is its length.
	Tokens uint32
}

const (
	// maxLinks is how many a header may have.
	maxLinks = 64
	// maxTokens is how long a beginning may be: extproc counts no further.
	maxTokens = 1<<24 - 1
	// keyDigits is how a key is written.
	keyDigits = 16
)

// Parse reads x-millrace-prefix: "KEY.TOKENS,…", the shortest beginning first, a
// key as 16 hexadecimal digits. Empty is no links.
func Parse(header string) ([]Link, error) {
	if header == "" {
		return nil, nil
	}
	if n := strings.Count(header, ",") + 1; n > maxLinks {
		return nil, fmt.Errorf("%d beginnings; must be %d at most", n, maxLinks)
	}
	links := make([]Link, 0, strings.Count(header, ",")+1)
	last := uint32(0)
	for part := range strings.SplitSeq(header, ",") {
		l, err := parseLink(part)
		if err != nil {
			return nil, fmt.Errorf("beginning %d: %w", len(links)+1, err)
		}
		if l.Tokens < last {
			return nil, fmt.Errorf("beginning %d: %d tokens after %d; must not shrink", len(links)+1, l.Tokens, last)
		}
		last = l.Tokens
		links = append(links, l)
	}
	return links, nil
}

func parseLink(s string) (Link, error) {
	key, tokens, ok := strings.Cut(s, ".")
	if !ok || len(key) != keyDigits || strings.Trim(key, "0123456789abcdef") != "" {
		return Link{}, fmt.Errorf("%.40q; must be 16 hexadecimal digits, a dot and a number", s)
	}
	k, err := strconv.ParseUint(key, 16, 64)
	if err != nil {
		return Link{}, fmt.Errorf("key %.40q; must be hexadecimal", key)
	}
	n, err := strconv.ParseUint(tokens, 10, 32)
	if err != nil || n > maxTokens {
		return Link{}, fmt.Errorf("tokens %.40q; must be a number up to %d", tokens, maxTokens)
	}
	return Link{Key: k, Tokens: uint32(n)}, nil
}
