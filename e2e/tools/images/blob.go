package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// blob is a layer's compressed tar file, kept on disk under the sum of what is in it.
type blob struct {
	path   string
	digest v1.Hash // of the file
	diff   v1.Hash // of what is compressed in it
	size   int64   // bytes of the file
}

// note is what is written beside a blob: without it the blob isn't whole.
type note struct {
	Digest, Diff v1.Hash
	Size         int64
}

// store keeps blobs in a folder.
type store struct{ dir string }

// blob returns the tree's blob, which is made only where it isn't there yet.
func (s store) blob(t tree) (*blob, error) {
	sum, err := t.sum()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(s.dir, sum+".tar.gz")
	var n note
	if b, err := os.ReadFile(name + ".json"); err == nil && json.Unmarshal(b, &n) == nil {
		if st, err := os.Stat(name); err == nil && st.Size() == n.Size {
			return &blob{path: name, digest: n.Digest, diff: n.Diff, size: n.Size}, nil
		}
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if n, err = compress(t, name); err != nil {
		return nil, err
	}
	b, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	if err := replaceFile(name+".json", func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return nil, err
	}
	return &blob{path: name, digest: n.Digest, diff: n.Diff, size: n.Size}, nil
}

// compress writes the tree's tar file, by a pinned library: the same everywhere.
func compress(t tree, name string) (note, error) {
	packed, unpacked := sha256.New(), sha256.New()
	var size counter
	err := replaceFile(name, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(io.MultiWriter(w, packed, &size), gzip.BestSpeed)
		if err != nil {
			return err
		}
		return errors.Join(t.write(io.MultiWriter(z, unpacked)), z.Close())
	})
	return note{
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(packed.Sum(nil))},
		Diff:   v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(unpacked.Sum(nil))},
		Size:   int64(size),
	}, err
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// replaceFile writes a file whole or not at all.
func replaceFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// Digest, DiffID, Compressed, Uncompressed, Size and MediaType make b a layer.
func (b *blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b *blob) DiffID() (v1.Hash, error)            { return b.diff, nil }
func (b *blob) Size() (int64, error)                { return b.size, nil }
func (b *blob) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (b *blob) Compressed() (io.ReadCloser, error)  { return os.Open(b.path) }
func (b *blob) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(b.path)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}
