// Package echo is the floor that pickers are measured against: an ext_proc
// server on the same gRPC stack that parses nothing and always names one host.
//
// Called by the benchmark, which runs it as a process of its own. Its one rule:
// it does what the protocol demands and not a bit more.
package echo

import (
	"errors"
	"io"
	"net"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/e2e/epdriver"
)

// piece is the largest body message that is sent back, in bytes: Envoy refuses
// more than 64 KiB in one.
const piece = 62 << 10

// Serve answers on ln that dest is the host, until ln is closed.
func Serve(ln net.Listener, dest string) error {
	metadata, err := structpb.NewStruct(map[string]any{
		"envoy.lb": map[string]any{epdriver.DestinationHeader: dest},
	})
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	extprocv3.RegisterExternalProcessorServer(srv, &server{dest: dest, metadata: metadata})
	return srv.Serve(ln)
}

type server struct {
	extprocv3.UnimplementedExternalProcessorServer

	// Constant.
	dest     string
	metadata *structpb.Struct
}

// Process answers one request of Envoy's filter.
func (s *server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	duplex := false
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if c := m.GetProtocolConfig(); c != nil {
			duplex = c.GetRequestBodyMode() == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED
		}
		for _, answer := range s.answer(m, duplex) {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

// answer returns what the protocol wants for one message.
func (s *server) answer(m *extprocv3.ProcessingRequest, duplex bool) []*extprocv3.ProcessingResponse {
	switch m := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		if duplex && !m.RequestHeaders.GetEndOfStream() {
			return nil // answered with the body
		}
		if m.RequestHeaders.GetEndOfStream() {
			return []*extprocv3.ProcessingResponse{s.headers()}
		}
		return []*extprocv3.ProcessingResponse{{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}}
	case *extprocv3.ProcessingRequest_RequestBody:
		if duplex {
			return s.duplex(m.RequestBody)
		}
		return []*extprocv3.ProcessingResponse{s.body(s.named())}
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return []*extprocv3.ProcessingResponse{{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}}
	case *extprocv3.ProcessingRequest_ResponseBody:
		return []*extprocv3.ProcessingResponse{{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}}
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return []*extprocv3.ProcessingResponse{{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}}
	}
	return nil
}

// named is the header mutation that names the host.
func (s *server) named() *extprocv3.CommonResponse {
	return &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
		SetHeaders: []*corev3.HeaderValueOption{{
			Header: &corev3.HeaderValue{Key: epdriver.DestinationHeader, RawValue: []byte(s.dest)},
		}},
	}}
}

func (s *server) headers() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{
		Response:        &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: s.named()}},
		DynamicMetadata: s.metadata,
	}
}

func (s *server) body(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{
		Response:        &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: c}},
		DynamicMetadata: s.metadata,
	}
}

// duplex names the host in the headers' answer and sends the body back. Bodies
// of one message are all that the benchmark sends in this mode.
func (s *server) duplex(b *extprocv3.HttpBody) []*extprocv3.ProcessingResponse {
	answers := []*extprocv3.ProcessingResponse{s.headers()}
	for rest := b.GetBody(); ; {
		n := min(len(rest), piece)
		part := &extprocv3.StreamedBodyResponse{Body: rest[:n], EndOfStream: n == len(rest) && b.GetEndOfStream()}
		answers = append(answers, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{
			Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: part}}},
		}}})
		if rest = rest[n:]; len(rest) == 0 {
			return answers
		}
	}
}
