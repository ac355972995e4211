package mesh

import (
	"io"
	"os"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/regular"
)

const (
	// maxLog bounds a log file, in bytes; the part before is kept once, in
	// NAME.log.old, so that a log takes twice as much at most.
	maxLog = 64 << 20
	// trimEvery is how often the sizes are checked.
	trimEvery = 10 * time.Second
)

// freshLogs makes an empty folder for logs; those of the run before stay in
// logs.old, once.
func freshLogs(logs string) error {
	old := logs + ".old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(logs, old); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.MkdirAll(logs, 0o755)
}

// trimLogs bounds the logs. They are cut in place because their writers hold
// them open, for appending; lines written during the copy are lost.
func trimLogs(logs string) {
	paths, _ := filepath.Glob(filepath.Join(logs, "*.log"))
	for _, path := range paths {
		if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
			cut(path)
		}
	}
}

func cut(path string) {
	if err := copyFile(path, path+".old"); err != nil {
		_ = os.Remove(path + ".old") // the bound matters more than the copy
	}
	_ = os.Truncate(path, 0)
}

func copyFile(from, to string) error {
	src, err := regular.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := regular.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	_, err = io.Copy(dst, io.LimitReader(src, maxLog))
	return err
}
