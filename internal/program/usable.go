package program

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"millrace.dev/millrace/internal/usable"
)

// usable returns which of the program's own addresses it could not listen at. One that is in
// use is shown: it may be by the very program that this one replaces; and so is one that this
// machine has not: the configuration may be meant for another.
func (f *Flags) usable(stderr io.Writer) error {
	var errs []error
	for _, a := range f.addresses {
		if a.use == dial || *a.value == "" {
			continue
		}
		inUse, err := usable.Address(*a.value)
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			fmt.Fprintf(stderr, "%s: note: -%s: %s: this machine doesn't have the address\n", f.Name(), a.name, *a.value)
		case err != nil:
			errs = append(errs, fmt.Errorf("-%s: %w", a.name, err))
		case inUse:
			fmt.Fprintf(stderr, "%s: note: -%s: %s is in use now\n", f.Name(), a.name, *a.value)
		}
	}
	return errors.Join(errs...)
}
