package program

import (
	"errors"
	"net"
	"syscall"

	"millrace.dev/millrace/internal/obs"
)

// advise adds the way out to an error of the operating system that has none yet.
func advise(err error) error {
	if h := (*obs.Hint)(nil); err == nil || errors.As(err, &h) {
		return err
	}
	var port *net.OpError
	listening := errors.As(err, &port) && port.Op == "listen"
	next := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		next = "make room on that disk, or name a folder on another one (-dir, -cache, $MILLRACE_CACHE)"
	case errors.Is(err, syscall.EROFS):
		next = "that disk can only be read: name a folder on another one (-dir, -cache, $MILLRACE_CACHE)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		next = "no interface of this machine has that address: 127.0.0.1 is for this machine alone, 0.0.0.0 is all interfaces"
	case listening && errors.Is(err, syscall.EACCES):
		next = "ports below 1024 are root's: choose a higher one"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		next = "name a file or folder that you may use (-dir, -cache, $MILLRACE_CACHE), or run as who may"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		next = "let the process open more files: ulimit -n"
	default:
		return err
	}
	return &obs.Hint{Err: err, Next: next}
}
