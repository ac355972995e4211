package status

import (
	"io"
	"strings"
	"unicode/utf8"
)

// table is rows of cells; the first row is the heads. The first column names the row, the
// last is a text of any length.
type table [][]string

// between separates columns.
const between = "  "

// write writes the table as it fits a width: columns that have no room stand in further
// tables below, behind the name of their row. 0: any width fits.
func (t table) write(w io.Writer, width int) {
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	last := len(widths) - 1
	for from := 1; from <= last; {
		to, used := from, widths[0]
		for to <= last && (width == 0 || to == from || used+len(between)+widths[to] <= width) {
			used += len(between) + widths[to]
			to++
		}
		if from > 1 {
			if t.empty(from, to) {
				return
			}
			_, _ = io.WriteString(w, "\n")
		}
		for _, row := range t {
			var b strings.Builder
			b.WriteString(row[0])
			pad := widths[0] - utf8.RuneCountInString(row[0])
			for i := from; i < to; i++ {
				b.WriteString(strings.Repeat(" ", pad) + between + row[i])
				pad = widths[i] - utf8.RuneCountInString(row[i])
			}
			if to > last {
				pad = 0 // nothing stands behind it
			}
			wrap(w, strings.TrimRight(b.String(), " "), strings.Repeat(" ", min(widths[0]+len(between), 12)), width)
		}
		from = to
	}
}

// empty reports whether there is nothing in some columns but heads.
func (t table) empty(from, to int) bool {
	for _, row := range t[1:] {
		if strings.Join(row[from:to], "") != "" {
			return false
		}
	}
	return true
}

// wrap writes a line, broken between words where it is wider than width; what follows is
// indented. 0: it is never too wide. A word that is too wide stays whole.
func wrap(w io.Writer, line, indent string, width int) {
	for width > 0 && utf8.RuneCountInString(line) > width {
		cut, at := -1, 0
		for i, r := range line {
			if r == ' ' && strings.TrimSpace(line[:i]) != "" && (at <= width || cut < 0) {
				cut = i
			}
			if at++; at > width && cut >= 0 {
				break
			}
		}
		if cut < 0 {
			break
		}
		_, _ = io.WriteString(w, strings.TrimRight(line[:cut], " ")+"\n")
		line = indent + strings.TrimLeft(line[cut:], " ")
	}
	_, _ = io.WriteString(w, line+"\n")
}
