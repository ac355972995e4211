package setup

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"millrace.dev/millrace/internal/regular"
)

// maxMember bounds one unpacked file, in bytes: a bomb ends there.
const maxMember = 1 << 30

// unpack writes the members of file that a's rules keep into dir.
func unpack(ctx context.Context, a archive, file, dir string) error {
	read := unzip
	if a.Source {
		read = untar
	}
	kept := map[string]bool{} // whether a rule's From has matched
	err := read(file, func(member string, mode fs.FileMode, r io.Reader) error {
		to, by, ok := a.dest(member)
		if !ok {
			return nil
		}
		kept[by.From] = true
		return writeMember(contextReader{ctx, r}, dir, to, mode)
	})
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	for _, r := range a.Take {
		if !kept[r.From] {
			return fmt.Errorf("unpack %s: has no %s", filepath.Base(file), r.From)
		}
	}
	return nil
}

// member is called for each regular file of an archive.
type member func(name string, mode fs.FileMode, r io.Reader) error

func unzip(file string, each member) error {
	z, err := zip.OpenReader(file)
	if err != nil {
		return err
	}
	defer z.Close()
	for _, f := range z.File {
		if !f.Mode().IsRegular() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		err = each(f.Name, f.Mode(), r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func untar(file string, each member) error {
	f, err := regular.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	t := tar.NewReader(z)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := each(h.Name, h.FileInfo().Mode(), t); err != nil {
			return err
		}
	}
}

// writeMember writes r to the file name below dir, and refuses to leave dir.
func writeMember(r io.Reader, dir, name string, mode fs.FileMode) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("member %q points outside", name)
	}
	to := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	perm := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	f, err := regular.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, maxMember+1))
	if err == nil && n > maxMember {
		err = fmt.Errorf("member %q is larger than %d bytes", name, maxMember)
	}
	return errors.Join(err, f.Close())
}
