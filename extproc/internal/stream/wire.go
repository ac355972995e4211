package stream

import (
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"
)

// reader walks over the fields of a protobuf message.
type reader struct {
	b   []byte
	err error // of the field that was broken; nothing is read behind it
}

// next returns the number and type of the next field, and false at the end. One
// of bytes, varint and skip must follow.
func (r *reader) next() (protowire.Number, protowire.Type, bool) {
	if len(r.b) == 0 || r.err != nil {
		return 0, 0, false
	}
	num, typ, n := protowire.ConsumeTag(r.b)
	return num, typ, r.pass(n)
}

// pass moves past n bytes; below 0, n is an error.
func (r *reader) pass(n int) bool {
	if n < 0 {
		r.err, r.b = protowire.ParseError(n), nil
		return false
	}
	r.b = r.b[n:]
	return true
}

// bytes reads a length-delimited field, which lies in the message.
func (r *reader) bytes() []byte {
	v, n := protowire.ConsumeBytes(r.b)
	r.pass(n)
	return v
}

// bool reads a field of a varint.
func (r *reader) bool() bool { return r.varint() != 0 }

func (r *reader) varint() uint64 {
	v, n := protowire.ConsumeVarint(r.b)
	r.pass(n)
	return v
}

// skip passes over a field that means nothing to us.
func (r *reader) skip(num protowire.Number, typ protowire.Type) {
	r.pass(protowire.ConsumeFieldValue(num, typ, r.b))
}

// fail takes in an error of a message in the message.
func (r *reader) fail(err error) {
	if err != nil && r.err == nil {
		r.err, r.b = err, nil
	}
}

// field returns the last field of bytes with a number; nil: there is none.
func (r *reader) field(want protowire.Number) (v []byte) {
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if num == want && typ == protowire.BytesType {
			v = r.bytes()
		} else {
			r.skip(num, typ)
		}
	}
	return v
}

// writer writes a protobuf message from its end to its start, so that lengths
// are known when they are due.
type writer struct {
	b []byte // what is written stands at its end
	n int    // how much that is, in bytes
	// tail is how many bytes follow that are not in b.
	tail int
}

// reset begins a new message before a tail.
func (w *writer) reset(tail int) { w.n, w.tail = 0, tail }

// mark is where a message in the message ends.
func (w *writer) mark() int { return w.n + w.tail }

// written is the message but for its tail.
func (w *writer) written() []byte { return w.b[len(w.b)-w.n:] }

// room makes space for n bytes and returns it.
func (w *writer) room(n int) []byte {
	if len(w.b)-w.n < n {
		b := make([]byte, 2*len(w.b)+n+512)
		copy(b[len(b)-w.n:], w.written())
		w.b = b
	}
	w.n += n
	at := len(w.b) - w.n
	return w.b[at : at+n]
}

func (w *writer) varint(v uint64) {
	n := (bits.Len64(v|1) + 6) / 7
	protowire.AppendVarint(w.room(n)[:0], v)
}

func (w *writer) tag(num protowire.Number, typ protowire.Type) {
	w.varint(protowire.EncodeTag(num, typ))
}

// number writes a field of a varint.
func (w *writer) number(num protowire.Number, v uint64) {
	w.varint(v)
	w.tag(num, protowire.VarintType)
}

// text writes a field of bytes or of a string.
func text[T string | []byte](w *writer, num protowire.Number, v T) {
	copy(w.room(len(v)), v)
	w.varint(uint64(len(v)))
	w.tag(num, protowire.BytesType)
}

// message writes the head of a field whose content was written since mark.
func (w *writer) message(num protowire.Number, mark int) {
	w.varint(uint64(w.mark() - mark))
	w.tag(num, protowire.BytesType)
}

// double writes a field of a double.
func (w *writer) double(num protowire.Number, bits uint64) {
	protowire.AppendFixed64(w.room(8)[:0], bits)
	w.tag(num, protowire.Fixed64Type)
}
