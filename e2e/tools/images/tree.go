package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// epoch is the time of every file and image: what is built twice is the same twice.
var epoch = time.Unix(0, 0).UTC()

// tree is what a layer adds to an image, by path below its root, without the folders
// that only lead there.
type tree map[string]file

// file is a file, link or folder of a tree, root's.
type file struct {
	// Mode has the kind, the permissions and the sticky bit.
	Mode fs.FileMode
	// Link is where a symbolic link leads to.
	Link string
	// Path is the file on this machine whose content it has; "": Data is the content.
	Path string
	Data []byte
	// hash is the SHA-256 of the content once it was read; nil before.
	hash []byte
}

func (t tree) text(name, text string) { t[name] = file{Mode: 0o644, Data: []byte(text)} }

func (t tree) program(name, from string) { t[name] = file{Mode: 0o755, Path: from} }

func (t tree) link(name, to string) { t[name] = file{Mode: fs.ModeSymlink | 0o777, Link: to} }

// merge adds the files of another tree; both having one is a fault of the plan.
func (t tree) merge(other tree) error {
	for name, f := range other {
		if _, ok := t[name]; ok {
			return fmt.Errorf("%s: in two trees", name)
		}
		t[name] = f
	}
	return nil
}

// open returns the content of a regular file.
func (f file) open() (io.ReadCloser, error) {
	if f.Path == "" {
		return io.NopCloser(bytes.NewReader(f.Data)), nil
	}
	return os.Open(f.Path)
}

// size is the length of the content in bytes.
func (f file) size() (int64, error) {
	if f.Path == "" {
		return int64(len(f.Data)), nil
	}
	st, err := os.Stat(f.Path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// whole is t with every folder that leads to its files.
func (t tree) whole() tree {
	all := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = file{Mode: fs.ModeDir | 0o755}
			}
		}
	}
	return all
}

// names are t's paths in the order of a tar file: a folder before what lies in it.
func (t tree) names() []string { return slices.Sorted(maps.Keys(t)) }

// sum identifies the tree by everything that is in its tar file.
func (t tree) sum() (string, error) {
	h := sha256.New()
	for _, name := range t.names() {
		f := t[name]
		fmt.Fprintf(h, "%q %o %q ", name, f.Mode, f.Link)
		if f.Mode.IsRegular() {
			content, err := f.sum()
			if err != nil {
				return "", err
			}
			h.Write(content)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashed is t with the hash of each content, so that several images read it once.
func (t tree) hashed() (tree, error) {
	all := maps.Clone(t)
	for name, f := range t {
		var err error
		if f.Mode.IsRegular() {
			f.hash, err = f.sum()
		}
		if err != nil {
			return nil, err
		}
		all[name] = f
	}
	return all, nil
}

// sum is the SHA-256 of the content.
func (f file) sum() ([]byte, error) {
	if f.hash != nil {
		return f.hash, nil
	}
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// write writes the tree as a tar file: sorted, root's, with one time for all.
func (t tree) write(w io.Writer) error {
	out := tar.NewWriter(w)
	all := t.whole()
	for _, name := range all.names() {
		f := all[name]
		h := &tar.Header{Name: name, Mode: int64(f.Mode.Perm()), ModTime: epoch, Format: tar.FormatUSTAR}
		switch {
		case f.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
			if f.Mode&fs.ModeSticky != 0 {
				h.Mode |= 0o1000
			}
		case f.Mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		default:
			var err error
			h.Typeflag = tar.TypeReg
			if h.Size, err = f.size(); err != nil {
				return err
			}
		}
		if len(name) > 99 {
			h.Format = tar.FormatPAX
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		r, err := f.open()
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.Close()
}

// unpack writes the tree below the folder.
func (t tree) unpack(dir string) error {
	all := t.whole()
	for _, name := range all.names() {
		f, to := all[name], filepath.Join(dir, name)
		switch {
		case f.Mode.IsDir():
			// Not by MkdirAll's mode, which the umask changes.
			if err := errors.Join(os.MkdirAll(to, 0o755), os.Chmod(to, f.Mode)); err != nil {
				return err
			}
			continue
		case f.Mode&fs.ModeSymlink != 0:
			if err := os.Symlink(f.Link, to); err != nil {
				return err
			}
			continue
		}
		r, err := f.open()
		if err != nil {
			return err
		}
		err = replaceFile(to, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
		if err := errors.Join(err, r.Close(), os.Chmod(to, f.Mode)); err != nil {
			return err
		}
	}
	return nil
}
