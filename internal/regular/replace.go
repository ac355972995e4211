package regular

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace puts a text that is on the disk already in the place of the file at path, with mode
// 0644: who reads it finds the one before or this one, over a power cut, too.
func Replace(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
