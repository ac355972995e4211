package prom

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// page is manifests/watch.md, from which an operator copies.
type page struct {
	blocks []block
	asked  map[string]bool // by query
}

// block is a fenced block of the page.
type block struct{ section, language, text string }

var (
	headings = regexp.MustCompile(`^## (.+)$`)
	fences   = regexp.MustCompile("^```([a-z]*)$")
)

func readPage(t *testing.T) *page {
	t.Helper()
	p := &page{asked: map[string]bool{}}
	section, open := "", (*block)(nil)
	for line := range strings.Lines(rig.Read(t, filepath.Join(rig.Root(), "manifests", "watch.md"))) {
		text := strings.TrimSuffix(line, "\n")
		fence := fences.FindStringSubmatch(text)
		switch {
		case fence != nil && open == nil:
			p.blocks = append(p.blocks, block{section: section, language: fence[1]})
			open = &p.blocks[len(p.blocks)-1]
		case fence != nil:
			open = nil
		case open != nil:
			open.text += line
		default:
			if h := headings.FindStringSubmatch(text); h != nil {
				section = h[1]
			}
		}
	}
	return p
}

// block returns the n-th block of a language in a section.
func (p *page) block(t *testing.T, section, language string, n int) string {
	t.Helper()
	for _, b := range p.blocks {
		if b.section != section || b.language != language {
			continue
		}
		if n == 0 {
			return b.text
		}
		n--
	}
	t.Fatalf("manifests/watch.md: no such block of %s in the section %q", language, section)
	return ""
}

// Prometheus scrapes every second here, so that a test need not wait for minutes: queries
// span so much less, and are otherwise what the page has.
const (
	pageInterval, interval = "scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"
	pageSpan, span         = "[5m]", "[10s]"
)

// query returns the n-th query of a section.
func (p *page) query(t *testing.T, section string, n int) string {
	t.Helper()
	q := p.block(t, section, "promql", n)
	p.asked[q] = true
	return strings.ReplaceAll(q, pageSpan, span)
}

// unasked says which queries of the page no test has asked.
func (p *page) unasked() error {
	var all []string
	for _, b := range p.blocks {
		if b.language == "promql" && !p.asked[b.text] {
			all = append(all, b.section+": "+b.text)
		}
	}
	if len(all) > 0 {
		return fmt.Errorf("%d queries:\n%s", len(all), strings.Join(all, "\n"))
	}
	return nil
}
