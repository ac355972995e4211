package program

import (
	"errors"
	"syscall"
)

// The exit codes of every program; README.md lists them.
const (
	ExitRuntime = 1 // something broke on the way
	ExitUsage   = 2 // bad flags
	ExitConfig  = 3 // bad configuration
	ExitSetup   = 4 // something needed can't be had
	ExitInUse   = 5 // address in use
	// ExitInterrupted is by a person, before the work was done: what shells say of SIGINT.
	ExitInterrupted = 130
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

// Usage is an error of the command line.
func Usage(err error) error { return &Exit{Code: ExitUsage, Err: err} }

// Config is an error of what is configured.
func Config(err error) error { return &Exit{Code: ExitConfig, Err: err} }

// Setup is an error of something that is needed and can't be had.
func Setup(err error) error { return &Exit{Code: ExitSetup, Err: err} }

// Interrupted is the error of work that a person has interrupted, and that continues where it
// was when it is run again.
func Interrupted() error {
	return &Exit{Code: ExitInterrupted, Err: errors.New("interrupted; run again")}
}

// ExitCode returns the code by which scripts distinguish errors: 0 for nil, 1 where
// no other is known.
func ExitCode(err error) int {
	var e *Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, syscall.EADDRINUSE):
		return ExitInUse
	default:
		return ExitRuntime
	}
}
