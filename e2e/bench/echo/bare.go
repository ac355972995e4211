package echo

import (
	"errors"
	"fmt"
	"io"
	"net"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// ServeBare answers each message on ln with prepared bytes, and reads one byte
// of it: what that costs is gRPC's own. It names no host, and sends no body back.
func ServeBare(ln net.Listener) error {
	srv := grpc.NewServer(grpc.ForceServerCodecV2(bareCodec{}))
	extprocv3.RegisterExternalProcessorServer(srv, bareServer{})
	return srv.Serve(ln)
}

type bareServer struct {
	extprocv3.UnimplementedExternalProcessorServer
}

// Process answers one request of Envoy's filter.
func (bareServer) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	var m bareMessage
	for {
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// bareMessage is the tag that a message begins with.
type bareMessage struct{ tag byte }

// bareReplies are by the tag of the message: continue.
var bareReplies = map[byte]mem.BufferSlice{
	2<<3 | 2: {mem.SliceBuffer{1<<3 | 2, 0}}, // request headers
	3<<3 | 2: {mem.SliceBuffer{2<<3 | 2, 0}}, // response headers
	4<<3 | 2: {mem.SliceBuffer{3<<3 | 2, 0}}, // request body
	5<<3 | 2: {mem.SliceBuffer{4<<3 | 2, 0}}, // response body
	7<<3 | 2: {mem.SliceBuffer{6<<3 | 2, 0}}, // response trailers
}

// bareCodec reads and writes bareMessage.
type bareCodec struct{}

// Marshal returns the answer to the message.
func (bareCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*bareMessage)
	if !ok {
		return nil, fmt.Errorf("message of type %T", v)
	}
	return bareReplies[m.tag], nil
}

// Unmarshal reads the first byte.
func (bareCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*bareMessage)
	if !ok || data.Len() == 0 {
		return fmt.Errorf("message of type %T, %d bytes", v, data.Len())
	}
	m.tag = data[0].ReadOnlyData()[0]
	return nil
}

// Name is the codec's name in content types.
func (bareCodec) Name() string { return "proto" }
