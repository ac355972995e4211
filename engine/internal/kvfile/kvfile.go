// Package kvfile is the form of a snapshot's file: a header that says what the state is of, and the
// state in compressed blocks, sealed where there is a key, with a sum over all of it.
//
// Called by snapshot. Its one rule: no byte of a state is used before the sum of the whole file
// was right, since what reads a state trusts it.
//
//	0   "mrkv"
//	4   size of the header, 4 bytes, big-endian
//	8   the header: a SnapshotHeader of the contract
//	    blocks: 4 bytes of size, then that much; sealed where the header has a salt; the last has
//	    the size 0, or is sealed from nothing
//	    SHA-256 of all before
package kvfile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/trust"
)

const (
	magic = "mrkv"
	// Format is the version that is written, and the only one that is read.
	Format = 1
	// mostHeader bounds the header, in bytes: 64 keys take less than one KiB.
	mostHeader = 4 << 10
	// blockSize is how much of a state a block has, in bytes.
	blockSize = 256 << 10
	// mostBlock bounds a block as it is in the file, in bytes.
	mostBlock = blockSize + 64
)

// ErrTorn is returned for bytes that are no whole snapshot, or whose sum or seal is wrong.
var ErrTorn = errors.New("torn or forged snapshot")

func torn(what string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrTorn, fmt.Sprintf(what, args...))
}

// Check returns what is wrong with a header.
func Check(h *enginepb.SnapshotHeader) error {
	if err := trust.Message(h); err != nil {
		return torn("header: %v", err)
	}
	switch keys := h.GetKeyTokens(); {
	case h.GetFormat() != Format:
		return torn("format: %d; must be %d", h.GetFormat(), Format)
	case len(keys) != len(h.GetKeys()):
		return torn("%d keys and %d lengths; must be as many", len(h.GetKeys()), len(keys))
	case h.GetTokens() > h.GetContextTokens():
		return torn("tokens: %d in a context of %d", h.GetTokens(), h.GetContextTokens())
	default:
		last := uint32(0)
		for i, n := range keys {
			if n < last || n > h.GetTokens() {
				return torn("key_tokens[%d]: %d; must be from %d to %d", i, n, last, h.GetTokens())
			}
			last = n
		}
	}
	return nil
}

// Key is the key of the whole prompt.
func Key(h *enginepb.SnapshotHeader) uint64 { return h.GetKeys()[len(h.GetKeys())-1] }

// summed writes, and sums what it writes.
type summed struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.h.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// File is a file's size, in bytes, and its sum.
type File struct {
	Bytes int64
	Sum   [sha256.Size]byte
}

// Encode writes the file of a state that r has. h is as it is to be in the file, without salt and
// format, which Encode sets. key seals it; nil: nothing does.
func Encode(w io.Writer, h *enginepb.SnapshotHeader, r io.Reader, key *Secret) (f File, err error) {
	h.Format = Format
	seal, err := key.seal(h)
	if err != nil {
		return f, err
	}
	if err := Check(h); err != nil {
		return f, err
	}
	text, err := proto.Marshal(h)
	if err != nil || len(text) > mostHeader {
		return f, fmt.Errorf("header of %d bytes: %w", len(text), errors.Join(err, ErrTorn))
	}
	buf := bufio.NewWriterSize(w, blockSize)
	out := &summed{w: buf, h: sha256.New()}
	head := append(binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text))), text...)
	if _, err := out.Write(head); err != nil {
		return f, err
	}
	if err := blocks(out, io.LimitReader(r, int64(h.GetStateBytes())+1), h.GetStateBytes(), seal.about(head)); err != nil {
		return f, err
	}
	out.h.Sum(f.Sum[:0])
	if _, err := out.Write(f.Sum[:]); err != nil {
		return f, err
	}
	f.Bytes = out.n
	return f, buf.Flush()
}

// Verify reads a whole file, and returns its header, size and sum if that is right: whether its
// blocks can be decoded is not known then. It fails with ErrTorn.
func Verify(r io.Reader) (h *enginepb.SnapshotHeader, f File, err error) {
	sum := sha256.New()
	h, head, err := header(r)
	if err != nil {
		return nil, f, err
	}
	sum.Write(head)
	// The last bytes that were read are not summed yet: they may be the sum.
	buf, kept := make([]byte, blockSize), 0
	f.Bytes = int64(len(head))
	for {
		n, err := r.Read(buf[kept:])
		f.Bytes += int64(n)
		if kept += n; kept > sha256.Size {
			sum.Write(buf[:kept-sha256.Size])
			kept = copy(buf, buf[kept-sha256.Size:kept])
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, f, err
		}
	}
	if sum.Sum(f.Sum[:0]); !bytes.Equal(buf[:kept], f.Sum[:]) {
		return nil, f, torn("its sum is wrong")
	}
	return h, f, nil
}

// blocks writes the state, which has so many bytes.
func blocks(w io.Writer, r io.Reader, size uint64, seal *seal) error {
	raw, done := make([]byte, blockSize), uint64(0)
	var c packer
	var frame []byte
	for {
		n, err := io.ReadFull(r, raw)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if done += uint64(n); n == 0 && done != size || done > size {
			return torn("the state has not the %d bytes that the header says", size)
		}
		var body []byte
		if n > 0 {
			body = c.pack(raw[:n])
		}
		frame = seal.close(append(frame[:0], 0, 0, 0, 0), body)
		binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
		if _, err := w.Write(frame); err != nil || n == 0 {
			return err
		}
	}
}

// Header reads the beginning of a file: that the rest is whole is not known then. It fails with
// ErrTorn.
func Header(r io.Reader) (*enginepb.SnapshotHeader, error) {
	h, _, err := header(r)
	return h, err
}

func header(r io.Reader) (h *enginepb.SnapshotHeader, head []byte, err error) {
	head = make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, nil, torn("%v", err)
	}
	size := binary.BigEndian.Uint32(head[4:])
	if string(head[:4]) != magic || size > mostHeader {
		return nil, nil, torn("it does not begin like one")
	}
	head = append(head, make([]byte, size)...)
	if _, err := io.ReadFull(r, head[8:]); err != nil {
		return nil, nil, torn("%v", err)
	}
	h = &enginepb.SnapshotHeader{}
	if err := proto.Unmarshal(head[8:], h); err != nil {
		return nil, nil, torn("%v", err)
	}
	return h, head, Check(h)
}

// Decode writes the state that is in a file to w, and returns the header. What was written counts
// only if there is no error: one is ErrTorn, or w's own.
func Decode(w io.Writer, from io.Reader, key *Secret) (*enginepb.SnapshotHeader, error) {
	sum := sha256.New()
	buf := bufio.NewReaderSize(from, blockSize)
	r := io.TeeReader(buf, sum)
	h, head, err := header(r)
	if err != nil {
		return nil, err
	}
	seal, err := key.open(h)
	if err != nil {
		return nil, err
	}
	if err := states(w, r, h.GetStateBytes(), seal.about(head)); err != nil {
		return nil, err
	}
	want := sum.Sum(nil)
	var end [sha256.Size + 1]byte
	if n, err := io.ReadFull(buf, end[:]); n != sha256.Size || !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(end[:n], want) {
		return nil, torn("its sum is wrong")
	}
	return h, nil
}

// states writes what the blocks of r have, which is so many bytes.
func states(w io.Writer, r io.Reader, size uint64, seal *seal) error {
	var c packer
	frame, raw := make([]byte, 4, mostBlock), make([]byte, 0, blockSize)
	for done := uint64(0); ; {
		if _, err := io.ReadFull(r, frame[:4]); err != nil {
			return torn("%v", err)
		}
		n := binary.BigEndian.Uint32(frame[:4])
		if n > mostBlock {
			return torn("a block of %d bytes", n)
		}
		if _, err := io.ReadFull(r, frame[:n]); err != nil {
			return torn("%v", err)
		}
		body, err := seal.open(frame[:n])
		if err != nil {
			return err
		}
		if len(body) == 0 {
			if done != size {
				return torn("%d bytes of %d", done, size)
			}
			return nil
		}
		if raw, err = c.unpack(raw[:0], body); err != nil {
			return err
		}
		if done += uint64(len(raw)); done > size {
			return torn("more than %d bytes", size)
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
}
