package main

import (
	"errors"
	"syscall"
)

// Exit codes, the same for every program.
const (
	exitRuntime = 1
	exitUsage   = 2
	exitConfig  = 3
	exitInUse   = 5
)

// usageError is a fault of the command line.
type usageError struct{ error }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.error }

// fleetError is a fault of the file of the fleet.
type fleetError struct{ error }

// Unwrap returns the cause.
func (e *fleetError) Unwrap() error { return e.error }

// exitCode returns the code by which scripts tell faults apart.
func exitCode(err error) int {
	var usage *usageError
	var config *fleetError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &config):
		return exitConfig
	case errors.Is(err, syscall.EADDRINUSE):
		return exitInUse
	default:
		return exitRuntime
	}
}
