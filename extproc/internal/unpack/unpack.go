// Package unpack decompresses request bodies (content-encoding), within bounds.
//
// It is called by stream for requests that come compressed. Its one rule: what
// comes out is never more than the caller allows, and costs no more memory than
// that, whatever came in.
package unpack

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ErrTooLarge says that more would come out than is allowed.
var ErrTooLarge = errors.New("larger than allowed")

// Encoding is a content encoding.
type Encoding uint8

// Encodings.
const (
	// Identity is no encoding.
	Identity Encoding = iota
	// Gzip is gzip.
	Gzip
	// Deflate is zlib, or a bare deflate stream, as some clients send it.
	Deflate
	// Zstd is Zstandard.
	Zstd
	// Unknown is any other, or several.
	Unknown
)

// Of returns the encoding that a content-encoding header names.
func Of(header string) Encoding {
	switch strings.ToLower(strings.TrimSpace(header)) {
	case "", "identity":
		return Identity
	case "gzip", "x-gzip":
		return Gzip
	case "deflate":
		return Deflate
	case "zstd":
		return Zstd
	default:
		return Unknown
	}
}

// window is the largest memory that a Zstandard body may ask for, in bytes: what
// RFC 8878, section 3.1.1.1.2, recommends every decoder to support.
const window = 8 << 20

// Readers are kept for the next body: they have tables of tens of kilobytes.
var (
	gzips sync.Pool // of *gzip.Reader
	zlibs sync.Pool // of io.ReadCloser that is a zlib.Resetter
	flats sync.Pool // of io.ReadCloser that is a flate.Resetter
	zstds sync.Pool // of *zstd.Decoder
)

// Append appends the body to dst. More than most bytes are ErrTooLarge; any other
// error says what is wrong with the body.
func Append(dst []byte, e Encoding, body []byte, most int64) ([]byte, error) {
	switch e {
	case Identity:
		if int64(len(body)) > most {
			return dst, ErrTooLarge
		}
		return append(dst, body...), nil
	case Gzip:
		return gunzip(dst, body, most)
	case Deflate:
		return inflate(dst, body, most)
	case Zstd:
		return unzstd(dst, body, most)
	}
	return dst, errors.New("unknown encoding")
}

func gunzip(dst, body []byte, most int64) ([]byte, error) {
	z, ok := gzips.Get().(*gzip.Reader)
	if !ok {
		z = new(gzip.Reader)
	}
	defer gzips.Put(z)
	if err := z.Reset(bytes.NewReader(body)); err != nil {
		return dst, err
	}
	return readAll(dst, z, most)
}

// inflate reads both forms of "deflate". A zlib head is 15 in the low bits of a
// number that 31 divides; a bare stream that begins so is broken.
func inflate(dst, body []byte, most int64) ([]byte, error) {
	if len(body) >= 2 && body[0]&15 == 8 && (uint(body[0])<<8|uint(body[1]))%31 == 0 {
		z, ok := zlibs.Get().(io.ReadCloser)
		if !ok {
			var err error
			if z, err = zlib.NewReader(bytes.NewReader(body)); err != nil {
				return dst, err
			}
		} else if err := z.(zlib.Resetter).Reset(bytes.NewReader(body), nil); err != nil {
			return dst, err
		}
		defer zlibs.Put(z)
		return readAll(dst, z, most)
	}
	z, ok := flats.Get().(io.ReadCloser)
	if !ok {
		z = flate.NewReader(bytes.NewReader(body))
	} else if err := z.(flate.Resetter).Reset(bytes.NewReader(body), nil); err != nil {
		return dst, err
	}
	defer flats.Put(z)
	return readAll(dst, z, most)
}

func unzstd(dst, body []byte, most int64) ([]byte, error) {
	z, ok := zstds.Get().(*zstd.Decoder)
	if !ok {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return dst, err
		}
	}
	defer zstds.Put(z)
	if err := z.Reset(bytes.NewReader(body)); err != nil {
		return dst, err
	}
	return readAll(dst, z, most)
}

// firstRead is how much room a body gets at first, in bytes.
const firstRead = 4 << 10

// readAll appends what r has. One byte more than is allowed is asked for, to know
// what just fits from what does not.
func readAll(dst []byte, r io.Reader, most int64) ([]byte, error) {
	start := len(dst)
	for {
		if len(dst) == cap(dst) {
			grown := make([]byte, len(dst), max(firstRead, 2*cap(dst)))
			copy(grown, dst)
			dst = grown
		}
		left := most + 1 - int64(len(dst)-start)
		room := dst[len(dst):cap(dst)]
		n, err := r.Read(room[:min(int64(len(room)), left)])
		dst = dst[:len(dst)+n]
		if int64(len(dst)-start) > most {
			return dst[:start], ErrTooLarge
		}
		if errors.Is(err, io.EOF) {
			return dst, nil
		} else if err != nil {
			return dst[:start], err
		}
	}
}
