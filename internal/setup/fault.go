package setup

import (
	"errors"
	"fmt"
	"syscall"

	"millrace.dev/millrace/internal/obs"
)

// errFull is a full disk, also when only a child process could say so.
var errFull = fmt.Errorf("%w", syscall.ENOSPC)

const untrustedHint = "the file is not the one that Millrace was tested with, and is not used; check whether a proxy or mirror changes downloads, and start again"

func hint(err error, next string) error { return &obs.Hint{Err: err, Next: next} }

// explain adds the way out to errors of the file system below the cache.
func explain(err error, cache string) error {
	var h *obs.Hint
	if err == nil || errors.As(err, &h) {
		return err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint(fmt.Errorf("cache %s: %w", cache, err),
			"free some space, or set -cache (MILLRACE_CACHE) to a folder on another disk")
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENOENT):
		return hint(fmt.Errorf("cache %s: %w", cache, err),
			"make the folder writable, or set -cache (MILLRACE_CACHE) to one that is")
	}
	return err
}
