package mesh

import "errors"

// The exit codes of the millrace command; README.md lists them.
const (
	ExitRuntime = 1 // something broke on the way
	ExitUsage   = 2 // bad flags
	ExitConfig  = 3 // bad configuration
	ExitSetup   = 4 // something needed can't be had
	ExitInUse   = 5 // address in use
)

// Exit is an error with the exit code that it deserves.
type Exit struct {
	// Code is one of the constants above.
	Code int
	// Err is the error itself.
	Err error
}

// Error returns the text of the error.
func (e *Exit) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *Exit) Unwrap() error { return e.Err }

// ExitCode returns the exit code for err: 0 for nil, 1 where none is known.
func ExitCode(err error) int {
	var e *Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	default:
		return ExitRuntime
	}
}
