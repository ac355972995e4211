package unpack

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// packed is a text in every form that is known.
func packed(t testing.TB, text []byte) map[string][]byte {
	t.Helper()
	makers := map[string]func(io.Writer) io.WriteCloser{
		"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
		"bare": func(w io.Writer) io.WriteCloser {
			z, err := flate.NewWriter(w, flate.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
	out := map[string][]byte{"identity": text}
	for name, maker := range makers {
		var b bytes.Buffer
		w := maker(&b)
		_, werr := w.Write(text)
		if err := errors.Join(werr, w.Close()); err != nil {
			t.Fatal(err)
		}
		out[name] = b.Bytes()
	}
	return out
}

// encodings is by the names of packed.
var encodings = map[string]Encoding{"identity": Identity, "gzip": Gzip, "deflate": Deflate, "bare": Deflate, "zstd": Zstd}

func TestAppend(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 100, 5000, 100000} {
		text := make([]byte, size)
		for i := range text {
			text[i] = "abc {}\""[r.IntN(7)]
		}
		for name, b := range packed(t, text) {
			for range 2 { // the second time with a used reader
				got, err := Append([]byte("x"), encodings[name], b, int64(size))
				if err != nil || string(got) != "x"+string(text) {
					t.Errorf("%s of %d bytes: %v, %d bytes", name, size, err, len(got))
				}
			}
			if _, err := Append(nil, encodings[name], b, int64(size)-1); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s of %d bytes, one fewer allowed: %v, want %v", name, size, err, ErrTooLarge)
			}
		}
	}
}

func TestBrokenBodies(t *testing.T) {
	for name, b := range packed(t, bytes.Repeat([]byte("words and more "), 1000)) {
		if name == "identity" {
			continue
		}
		broken := bytes.Clone(b)
		for i := range broken {
			broken[i] ^= 0x5a
		}
		for what, b := range map[string][]byte{"cut": b[:len(b)/2], "broken": broken} {
			if _, err := Append(nil, encodings[name], b, 1<<20); err == nil || errors.Is(err, ErrTooLarge) {
				t.Errorf("%s, %s: %v, want an error of the body", name, what, err)
			}
			if got, err := Append(nil, encodings[name], packed(t, []byte("fine"))[name], 10); err != nil || string(got) != "fine" {
				t.Errorf("%s after %s: %q, %v", name, what, got, err)
			}
		}
	}
	if _, err := Append(nil, Unknown, nil, 1); err == nil {
		t.Error("an unknown encoding is undone")
	}
}

// TestBombsAreCheap holds the promise that a bomb costs no more than what is allowed.
func TestBombsAreCheap(t *testing.T) {
	const most = 1 << 20
	for name, b := range packed(t, make([]byte, 40<<20)) {
		if name == "identity" {
			continue
		}
		_, _ = Append(nil, encodings[name], b, most) // the reader's own memory
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Append(nil, encodings[name], b, most)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, ErrTooLarge) || n > 16*most {
			t.Errorf("%s: %v, and %d bytes were allocated", name, err, n)
		}
	}
}

func TestOf(t *testing.T) {
	for header, want := range map[string]Encoding{
		"": Identity, "identity": Identity, "GZIP": Gzip, " x-gzip ": Gzip, "deflate": Deflate, "zstd": Zstd, "br": Unknown, "gzip, gzip": Unknown,
	} {
		if got := Of(header); got != want {
			t.Errorf("Of(%q) = %d, want %d", header, got, want)
		}
	}
}

// naive undoes an encoding with readers that nobody has used before.
func naive(e Encoding, body []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch e {
	case Gzip:
		r, err = gzip.NewReader(bytes.NewReader(body))
	case Deflate:
		if r, err = zlib.NewReader(bytes.NewReader(body)); errors.Is(err, zlib.ErrHeader) || len(body) < 2 {
			r, err = flate.NewReader(bytes.NewReader(body)), nil
		}
	case Zstd:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		r = bytes.NewReader(body)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, most+1))
}

// most is the largest body in the comparison with the twin, in bytes.
const most = 1 << 16

// checkAppend compares Append, whose readers have seen other bodies, with its twin.
func checkAppend(t *testing.T, e Encoding, body []byte) {
	t.Helper()
	got, err := Append([]byte("x"), e, body, most)
	if len(got) < 1 || got[0] != 'x' || len(got) > 1+most || err != nil && len(got) != 1 {
		t.Fatalf("%d bytes of %d, %v", len(got), len(body), err)
	}
	want, wantErr := naive(e, body)
	if tooLarge := len(want) > most; tooLarge != errors.Is(err, ErrTooLarge) {
		t.Fatalf("%.200q: %v; the twin has %d bytes, %v", body, err, len(want), wantErr)
	} else if tooLarge {
		return
	}
	if (err != nil) != (wantErr != nil) || err == nil && !bytes.Equal(got[1:], want) {
		t.Fatalf("%.200q as %d: %d bytes, %v; the twin has %d bytes, %v", body, e, len(got)-1, err, len(want), wantErr)
	}
}

// TestAppendAgainstItsTwin has bodies with some wrong bytes, one after the other.
func TestAppendAgainstItsTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 1))
	for range 40 {
		text := make([]byte, r.IntN(300)*r.IntN(300))
		for i := range text {
			text[i] = "abc {}\""[r.IntN(1+r.IntN(7))]
		}
		for name, b := range packed(t, text) {
			b = append(bytes.Clone(b), []string{"", "", "x", string(b)}[r.IntN(4)]...)
			for range r.IntN(3) * r.IntN(2) {
				if len(b) > 0 {
					b[r.IntN(len(b))] ^= 1 << r.IntN(8)
				}
			}
			checkAppend(t, encodings[name], b)
		}
	}
}

func FuzzAppend(f *testing.F) {
	for name, b := range packed(f, []byte(`{"model":"m","messages":[]}`)) {
		f.Add(byte(encodings[name]), b)
	}
	f.Fuzz(func(t *testing.T, e byte, body []byte) { checkAppend(t, Encoding(e%byte(Unknown)), body) })
}
