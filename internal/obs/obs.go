// Package obs is how every program of Millrace shows itself: logs, traces,
// errors with a way out, and the admin port with metrics and conditions.
//
// Called by each main and by its edges. Its one rule: nothing in here is global,
// so that tests can run several programs in one process.
package obs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"millrace.dev/millrace/internal/secret"
)

// Logger returns the logger of a program: one line of key=value pairs an event. Users and
// passwords of addresses are not shown, whatever they stand in.
func Logger(w io.Writer, program string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: hide})).With("program", program)
}

// hide takes out of a text or an error who asks at an address.
func hide(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(secret.Hide(v.String()))
	case slog.KindAny:
		if err, ok := v.Any().(error); ok && err != nil {
			a.Value = slog.StringValue(secret.Hide(err.Error()))
		}
	}
	return a
}

// Hint is an error with what a person can do about it.
type Hint struct {
	Err error
	// Next is the way out, as an instruction: "set listen to an address such as …".
	Next string
}

// Error returns the error's text without the hint.
func (h *Hint) Error() string { return h.Err.Error() }

// Unwrap returns the error that the hint is about.
func (h *Hint) Unwrap() error { return h.Err }

// PrintError writes err for a person: a line "program: err", and a line
// "program: hint: …" for each hint in its chain.
func PrintError(w io.Writer, program string, err error) {
	fmt.Fprintf(w, "%s: %s\n", program, secret.Hide(err.Error()))
	for h := (*Hint)(nil); errors.As(err, &h); err = h.Err {
		fmt.Fprintf(w, "%s: hint: %s\n", program, secret.Hide(h.Next))
	}
}

// Number is a truth as metrics have it: 1 or 0.
func Number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
