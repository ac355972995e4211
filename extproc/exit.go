package main

import (
	"errors"
	"syscall"
)

// Exit codes, the same for every program.
const (
	exitRuntime = 1
	exitUsage   = 2
	exitInUse   = 5
)

// usageError is a fault of the command line.
type usageError struct{ error }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.error }

// exitCode returns the code by which scripts tell faults apart.
func exitCode(err error) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, syscall.EADDRINUSE):
		return exitInUse
	default:
		return exitRuntime
	}
}
