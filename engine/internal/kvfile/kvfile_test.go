package kvfile

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/engine/enginepb"
)

// about is one of a state of so many bytes.
func about(size int) *enginepb.SnapshotHeader {
	return &enginepb.SnapshotHeader{
		Format: Format,
		Identity: &enginepb.SnapshotIdentity{
			WeightsSha256: bytes.Repeat([]byte{7}, 32), Backend: "llamacpp", Version: "1", KvTypes: "f16/f16", Layout: "layers",
		},
		Keys: []uint64{3, 9}, KeyTokens: []uint32{10, 200}, Tokens: 230, ContextTokens: 4096, StateBytes: uint64(size), Saved: 1, RecomputeMs: 4000,
	}
}

// halves is a state of floats of 16 bits.
func halves(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, size)
	for i := range b {
		if b[i] = byte(r.Uint32()); i%2 == 1 {
			b[i] = 60 + byte(math.Abs(r.NormFloat64())*3)
		}
	}
	return b
}

func encoded(t testing.TB, state []byte, key *Secret) []byte {
	t.Helper()
	var b bytes.Buffer
	f, err := Encode(&b, about(len(state)), bytes.NewReader(state), key)
	if err != nil || f.Bytes != int64(b.Len()) {
		t.Fatalf("Encode() = %v, %v; %d bytes were written", f, err, b.Len())
	}
	if _, got, err := Verify(bytes.NewReader(b.Bytes())); err != nil || got != f {
		t.Fatalf("Verify() = %v, %v, want %v", got, err, f)
	}
	return b.Bytes()
}

func TestStateComesBack(t *testing.T) {
	for name, state := range map[string][]byte{
		"floats": halves(3*blockSize + 4), "odd": halves(blockSize + 1), "one byte": {5}, "zeros": make([]byte, 2*blockSize), "short": []byte("abc"),
	} {
		for sealed, key := range map[string]*Secret{"open": nil, "sealed": NewSecret([]byte("a key of 16 bytes"))} {
			t.Run(name+" "+sealed, func(t *testing.T) {
				file := encoded(t, state, key)
				var got bytes.Buffer
				h, err := Decode(&got, bytes.NewReader(file), key)
				if err != nil || !bytes.Equal(got.Bytes(), state) {
					t.Fatalf("Decode() = %v; %d bytes, want %d", err, got.Len(), len(state))
				}
				want := about(len(state))
				want.Salt = h.GetSalt()
				if diff := cmp.Diff(want, h, protocmp.Transform()); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
				if name == "floats" && len(file) > len(state)*9/10 {
					t.Errorf("%d bytes for %d", len(file), len(state))
				}
			})
		}
	}
}

// TestTornFilesAreRefused changes each kind of byte, and cuts files anywhere.
func TestTornFilesAreRefused(t *testing.T) {
	key := NewSecret([]byte("a key of 16 bytes"))
	for sealed, key := range map[string]*Secret{"open": nil, "sealed": key} {
		file := encoded(t, halves(blockSize+999), key)
		r := rand.New(rand.NewPCG(3, 4))
		for range 60 {
			bad := bytes.Clone(file)
			if at := r.IntN(len(bad)); r.IntN(2) == 0 {
				bad[at] ^= 1 << r.IntN(8)
			} else {
				bad = bad[:at]
			}
			if _, err := Decode(&bytes.Buffer{}, bytes.NewReader(bad), key); !errors.Is(err, ErrTorn) {
				t.Fatalf("%s: Decode() = %v, want ErrTorn", sealed, err)
			}
			if _, _, err := Verify(bytes.NewReader(bad)); !errors.Is(err, ErrTorn) {
				t.Fatalf("%s: Verify() = %v, want ErrTorn", sealed, err)
			}
		}
		if _, err := Decode(&bytes.Buffer{}, bytes.NewReader(append(file, 0)), key); !errors.Is(err, ErrTorn) {
			t.Errorf("%s: with a byte more: %v", sealed, err)
		}
	}
	open, closed := encoded(t, halves(99), nil), encoded(t, halves(99), key)
	for name, err := range map[string]error{
		"an open one where there is a key": decode(open, key), "a sealed one where there is none": decode(closed, nil),
		"one that another key sealed": decode(closed, NewSecret([]byte("another key of 16 bytes"))),
	} {
		if !errors.Is(err, ErrTorn) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func decode(file []byte, key *Secret) error {
	_, err := Decode(&bytes.Buffer{}, bytes.NewReader(file), key)
	return err
}

func TestHeadersAreChecked(t *testing.T) {
	for name, change := range map[string]func(*enginepb.SnapshotHeader){
		"format":   func(h *enginepb.SnapshotHeader) { h.Format = 2 },
		"keys":     func(h *enginepb.SnapshotHeader) { h.Keys = nil },
		"lengths":  func(h *enginepb.SnapshotHeader) { h.KeyTokens = []uint32{1} },
		"order":    func(h *enginepb.SnapshotHeader) { h.KeyTokens = []uint32{5, 4} },
		"beyond":   func(h *enginepb.SnapshotHeader) { h.KeyTokens = []uint32{5, 231} },
		"context":  func(h *enginepb.SnapshotHeader) { h.ContextTokens = 229 },
		"identity": func(h *enginepb.SnapshotHeader) { h.Identity.WeightsSha256 = nil },
		"size":     func(h *enginepb.SnapshotHeader) { h.StateBytes = 0 },
	} {
		h := about(5)
		if err := Check(h); err != nil {
			t.Fatal(err)
		}
		if change(h); !errors.Is(Check(h), ErrTorn) {
			t.Errorf("%s: Check() = %v", name, Check(h))
		}
	}
}

func TestStateOfAnotherSizeIsNotWritten(t *testing.T) {
	for _, size := range []int{5, 7} {
		if _, err := Encode(&bytes.Buffer{}, about(6), bytes.NewReader(make([]byte, size)), nil); err == nil {
			t.Errorf("%d bytes for 6: no error", size)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(encoded(f, []byte("state"), nil))
	f.Add([]byte("mrkv\x00\x00\x00\x02\x08\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Header(bytes.NewReader(b))
		if err == nil && (Check(h) != nil || proto.Size(h) > mostHeader) {
			t.Errorf("%v is taken", h)
		}
	})
}

// FuzzDecode puts any bytes where the blocks are, under a right header and a right sum.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x0c\x00\x00\x00\x04\x00\x00\x00\x02abcd\x00\x00\x00\x00"), 4)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, blocks []byte, size int) {
		if size < 1 || size > 1<<20 {
			return
		}
		var got bytes.Buffer
		if err := states(&got, bytes.NewReader(blocks), uint64(size), nil); err == nil && got.Len() != size {
			t.Errorf("%d bytes, want %d", got.Len(), size)
		} else if err != nil && !errors.Is(err, ErrTorn) {
			t.Errorf("%v; must be ErrTorn", err)
		}
	})
}
