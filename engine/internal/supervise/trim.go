package supervise

import (
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
// path.old and empties it. Its writers append, so they continue at the beginning.
func trimFile(path string, limit int64) error {
	info, err := os.Stat(path)
	if os.IsNotExist(err) || err == nil && info.Size() <= limit {
		return nil
	}
	if err != nil {
		return err
	}
	src, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(path + ".old")
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.NewSectionReader(src, info.Size()-limit/2, limit/2))
	if err2 := dst.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	return os.Truncate(path, 0)
}
