package kvfile

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/huff0"
)

// packer compresses blocks. Keys and values are floats of 16 bits, of which the low byte is noise
// and the high one, with sign and exponent, is not; and nothing in them repeats. So each block is
// taken apart into a plane of its even and one of its odd bytes, and each plane is coded by its
// frequencies alone, with the entropy stage of zstd. All of zstd finds nothing more and takes five
// times as long: manifests/snapshots.md has the figures.
//
//	0   size of the block, 4 bytes, big-endian
//	4   size of the even plane as it is here, 4 bytes; as much as it has: it is not coded
//	8   even plane, then the odd one
type packer struct {
	scratch      huff0.Scratch
	planes, out  []byte
	decoded, odd []byte
}

// packHead is how many bytes are before the planes.
const packHead = 8

// pack returns a block, which is valid until the next call.
func (c *packer) pack(raw []byte) []byte {
	even, odd := c.split(raw)
	c.out = binary.BigEndian.AppendUint32(c.out[:0], uint32(len(raw)))
	c.out = append(c.out, 0, 0, 0, 0)
	c.out = c.code(c.out, even)
	binary.BigEndian.PutUint32(c.out[4:], uint32(len(c.out)-packHead))
	c.out = c.code(c.out, odd)
	return c.out
}

func (c *packer) split(raw []byte) (even, odd []byte) {
	c.planes = append(c.planes[:0], raw...)
	half := (len(raw) + 1) / 2
	even, odd = c.planes[:half:half], c.planes[half:]
	for i := range odd {
		even[i], odd[i] = raw[2*i], raw[2*i+1]
	}
	if len(even) > len(odd) {
		even[half-1] = raw[len(raw)-1]
	}
	return even, odd
}

// code appends a plane, coded where that is shorter.
func (c *packer) code(to, plane []byte) []byte {
	c.scratch.Reuse = huff0.ReusePolicyNone
	coded, _, err := huff0.Compress4X(plane, &c.scratch)
	switch {
	case errors.Is(err, huff0.ErrUseRLE) && len(plane) > 1:
		return append(to, plane[0])
	case err != nil || len(coded) >= len(plane):
		return append(to, plane...)
	}
	return append(to, coded...)
}

// unpack appends the block that b is.
func (c *packer) unpack(to, b []byte) ([]byte, error) {
	if len(b) < packHead {
		return nil, torn("a block of %d bytes", len(b))
	}
	size, even := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	b = b[packHead:]
	if size == 0 || size > blockSize || uint64(even) > uint64(len(b)) {
		return nil, torn("a block of %d bytes, with a plane of %d", size, even)
	}
	var err error
	if c.decoded, err = c.decode(c.decoded[:0], b[:even], int(size+1)/2); err != nil {
		return nil, err
	}
	if c.odd, err = c.decode(c.odd[:0], b[even:], int(size)/2); err != nil {
		return nil, err
	}
	from := len(to)
	to = append(to, make([]byte, size)...)
	for i, v := range c.decoded {
		to[from+2*i] = v
	}
	for i, v := range c.odd {
		to[from+2*i+1] = v
	}
	return to, nil
}

// decode appends a plane of so many bytes.
func (c *packer) decode(to, b []byte, size int) ([]byte, error) {
	switch {
	case len(b) == size:
		return append(to, b...), nil
	case len(b) == 0 || len(b) > size:
		return nil, torn("a plane of %d bytes in %d", size, len(b))
	case len(b) == 1:
		for range size {
			to = append(to, b[0])
		}
		return to, nil
	}
	s, rest, err := huff0.ReadTable(b, &c.scratch)
	if err != nil {
		return nil, torn("%v", err)
	}
	if cap(to) < size {
		to = make([]byte, 0, blockSize)
	}
	plane, err := s.Decoder().Decompress4X(to[:0:size], rest)
	if err != nil || len(plane) != size {
		return nil, torn("a plane: %d of %d bytes: %v", len(plane), size, err)
	}
	return plane, nil
}
