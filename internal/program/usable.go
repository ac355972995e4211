package program

import (
	"errors"
	"fmt"
	"io"

	"millrace.dev/millrace/internal/usable"
)

// usable returns which of the program's own addresses it could not listen at. One that is in
// use is shown: it may be by the very program that this one replaces.
func (f *Flags) usable(stderr io.Writer) error {
	var errs []error
	for _, a := range f.addresses {
		if a.use == dial || *a.value == "" {
			continue
		}
		inUse, err := usable.Address(*a.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("-%s: %w", a.name, err))
		}
		if inUse {
			fmt.Fprintf(stderr, "%s: note: -%s: %s is in use now\n", f.Name(), a.name, *a.value)
		}
	}
	return errors.Join(errs...)
}
