package supervise

import (
	"errors"
	"io"
	"os"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/regular"
)

// maxLog bounds a log file, in bytes: the older half is dropped, the newer kept
// in a file of its own. trimEvery is how often the size is checked.
const (
	maxLog    = 32 << 20
	trimEvery = 10 * time.Second
)

// trim keeps the log files of the children bounded.
func (s *Supervisor) trim(now time.Time) {
	if now.Sub(s.trimmed) < trimEvery {
		return
	}
	s.trimmed = now
	for r := range s.children {
		if err := trimFile(s.logPath(backend.Role(r)), maxLog); err != nil {
			s.cfg.Log.Warn("log not trimmed", "err", err)
		}
	}
}

// trimFile copies the last part of a file that has grown beyond limit to
// path.old and empties it. Its writers append, so they continue at the beginning. Where the
// disk has no room for the copy, the bound matters more.
func trimFile(path string, limit int64) error {
	info, err := os.Stat(path)
	if os.IsNotExist(err) || err == nil && info.Size() <= limit {
		return nil
	}
	if err != nil {
		return err
	}
	kept := keepLast(path, info.Size(), limit/2)
	if kept != nil {
		_ = os.Remove(path + ".old")
	}
	return errors.Join(kept, os.Truncate(path, 0))
}

// keepLast copies the last bytes of a file of a size to path.old.
func keepLast(path string, size, bytes int64) error {
	src, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := regular.Create(path + ".old")
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.NewSectionReader(src, size-bytes, bytes))
	return errors.Join(err, dst.Close())
}
