package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/internal/progress"
	"millrace.dev/millrace/internal/regular"
)

// A stamp says that a part is installed, and how its files looked then.
type stamp struct {
	Pin   string    `json:"pin"`   // part.pin of what was installed
	Files []stamped `json:"files"` // the pinned ones first
}

// stamped is one file of an installed part.
type stamped struct {
	Name   string    `json:"name"` // in the part's folder
	SHA256 string    `json:"sha256"`
	Size   int64     `json:"size"`     // bytes
	Mtime  time.Time `json:"modified"` // a file with other size or time is hashed again
}

// errMismatch marks a file that isn't what its pin or stamp says.
var errMismatch = errors.New("hash mismatch")

// mismatch is the error for a file with another hash than it must have.
func mismatch(file, want, got string) error {
	return fmt.Errorf("%s: %w: sha256 is %s, must be %s", file, errMismatch, got, want)
}

// maxStamp is far more than the largest stamp, in bytes: that of a folder with thousands of files.
const maxStamp = 16 << 20

func stampPath(cache string, p part) string {
	return filepath.Join(cache, stampFolder, strings.ReplaceAll(p.Name, " ", "-")+".json")
}

// missingParts returns the parts that must be installed.
func missingParts(ctx context.Context, cache string, parts []part, show *progress.Progress) ([]part, error) {
	var missing []part
	for _, p := range parts {
		ok, err := installed(ctx, cache, p, show)
		if err != nil {
			return nil, err
		}
		if !ok {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// installed says whether p is in the cache, unaltered. An altered file is an
// error: who changed it, and why, is a question for a person.
func installed(ctx context.Context, cache string, p part, show *progress.Progress) (bool, error) {
	b, err := regular.Read(stampPath(cache, p), maxStamp)
	if err != nil {
		return false, absent(err)
	}
	var s stamp
	if json.Unmarshal(b, &s) != nil || s.Pin != p.pin() {
		return false, nil
	}
	var fresh stamp
	for _, f := range s.Files {
		now, err := f.check(ctx, filepath.Join(cache, p.Folder), show)
		if err != nil {
			return false, absent(err)
		}
		fresh.Files = append(fresh.Files, now)
	}
	if !fresh.sameTimes(s) {
		fresh.Pin = s.Pin
		// A cache that can't be written is still good: it is hashed again next time.
		_ = fresh.write(cache, p)
	}
	return true, nil
}

// absent turns "does not exist", also "a parent is no folder", into no error.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// check returns f as it is on disk now, hashing it only if it looks changed.
func (f stamped) check(ctx context.Context, folder string, show *progress.Progress) (stamped, error) {
	name := filepath.Join(folder, f.Name)
	st, err := os.Stat(name)
	if err != nil {
		return f, err
	}
	if st.Size() == f.Size && st.ModTime().Equal(f.Mtime) {
		return f, nil
	}
	t := show.Begin("check "+f.Name, st.Size(), nil)
	defer show.End(t)
	sum, err := hashFile(ctx, name)
	if err != nil {
		return f, err
	}
	if sum != f.SHA256 {
		return f, hint(mismatch(name, f.SHA256, sum),
			"if you didn't change it, distrust the disk; remove "+name+" and start again: it is then fetched anew")
	}
	f.Mtime = st.ModTime()
	return f, nil
}

func (s stamp) sameTimes(o stamp) bool {
	for i := range s.Files {
		if !s.Files[i].Mtime.Equal(o.Files[i].Mtime) {
			return false
		}
	}
	return true
}

// write commits the part p: from then on it is installed.
func (s stamp) write(cache string, p part) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	name := stampPath(cache, p)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already if all went well
	_, err = tmp.Write(append(b, '\n'))
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

func hashFile(ctx context.Context, name string) (string, error) {
	f, err := regular.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// contextReader ends a long copy when the context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
