package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxFaults bounds how many faults of one file are reported; a file with more
// is not YAML of ours at all.
const maxFaults = 100

// Fault is one thing wrong in a file.
type Fault struct {
	// File is the name of the file, as given.
	File string
	// Line in it, from 1; 0: of no line.
	Line int
	// Kind and Name are of the object that it is in; empty: of none, or not known.
	Kind, Name string
	// Path of the field, for example "spec.backend.slots"; empty: of no field.
	Path string
	// Text is what is wrong and what would be right.
	Text string
}

// Error returns "FILE:LINE: PATH: TEXT", leaving out what is not known.
func (f Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// Faults returns the faults of which an error is made. Another error is one fault.
func Faults(err error) []Fault {
	var fault Fault
	var several interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &several):
		var all []Fault
		for _, e := range several.Unwrap() {
			all = append(all, Faults(e)...)
		}
		return all
	case errors.As(err, &fault):
		return []Fault{fault}
	}
	return []Fault{{Text: err.Error()}}
}

// Join returns all faults as one error, one a line in the order of the file; nil
// without any.
func Join(faults []Fault) error { return join(slices.Clone(faults)) }

// join returns all faults as one error, one a line in the order of the file;
// nil without any.
func join(faults []Fault) error {
	slices.SortStableFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	var errs []error
	for i, f := range faults {
		if i == maxFaults {
			errs = append(errs, fmt.Errorf("%s: and %d more", f.File, len(faults)-i))
			break
		}
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// nearest returns the name most like the given one, or "" if none is.
func nearest(name string, names []string) string {
	best, bestAt := "", 1+max(1, len(name)/3)
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d < bestAt {
			best, bestAt = n, d
		}
	}
	return best
}

// distance returns how many letters must be changed, added or removed to make
// one name of the other. Long names are not compared.
func distance(a, b string) int {
	const tooLong = 64
	if len(a) > tooLong || len(b) > tooLong {
		return tooLong
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
