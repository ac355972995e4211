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
