package stream

import (
	"fmt"
	"math/bits"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// Buffers of a connection, in bytes. Envoy keeps one connection for each of its
// threads, and bodies come and go in frames of 16 KiB: room for several saves
// system calls.
const ioBuffer = 128 << 10

// workers is how many goroutines serve one stream after the other: their stacks
// have grown once and for all. More streams get goroutines of their own.
const workers = 64

// ServerOptions are what a gRPC server must be made with to serve Server. Other
// services on the same server are not affected.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		experimental.BufferPool(buffers),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.NumStreamWorkers(workers),
	}
}

// codec is gRPC's codec for inbound and outbound, and protobuf's for all else.
type codec struct{ encoding.CodecV2 }

// Marshal returns v's bytes.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	o, ok := v.(*outbound)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	if o.reply.Kind == Immediate {
		return c.CodecV2.Marshal(immediate(o.reply))
	}
	return o.bytes(), nil
}

// Unmarshal reads v from its bytes.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*inbound)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	whole := data.MaterializeToBuffer(buffers)
	if err := in.read(whole.ReadOnlyData()); err != nil {
		whole.Free()
		return fmt.Errorf("message of the external processor: %w", err)
	}
	if len(in.Body) == 0 {
		whole.Free()
		return nil
	}
	in.hold = whole
	return nil
}

// Sizes of pooled buffers, as powers of two, in bytes.
const (
	smallest = 9
	largest  = 24
)

// buffers is the memory of messages.
var buffers = new(pool)

// pool keeps buffers of powers of two for reuse. Unlike gRPC's own it doesn't
// clear them, which for bodies costs as much as a copy, and wastes at most half
// of each.
type pool struct {
	sizes [largest + 1]sync.Pool // of *[]byte with that capacity
}

// Get returns a buffer of a length. What is in it is not defined.
func (p *pool) Get(n int) *[]byte {
	class := max(smallest, bits.Len(uint(max(n, 1)-1)))
	if class > largest {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p.sizes[class].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<class)
	return &b
}

// Put takes a buffer back.
func (p *pool) Put(b *[]byte) {
	class := bits.Len(uint(cap(*b))) - 1
	if class >= smallest && class <= largest && cap(*b) == 1<<class {
		p.sizes[class].Put(b)
	}
}
