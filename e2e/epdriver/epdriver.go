// Package epdriver speaks Envoy's ext_proc protocol to an endpoint picker, as
// Envoy's filter would, and counts what it decided.
//
// Called by the benchmark. Its one rule: it drives any picker, ours or a floor
// that decides nothing, in the very same way.
package epdriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/e2e/rig"
)

// Mode is how the request reaches the picker.
type Mode string

// The modes of Envoy's filter that pickers speak.
const (
	// Buffered sends the headers, awaits the answer, then sends the whole body.
	Buffered Mode = "buffered"
	// FullDuplex sends headers and body at once and gets the body back.
	FullDuplex Mode = "fds"
	// Streamed sends the body without its holding up the headers.
	Streamed Mode = "streamed"
	// Headers sends no body.
	Headers Mode = "headers"
)

// DestinationHeader names the chosen hosts, as the endpoint-picker protocol has it.
const DestinationHeader = "x-gateway-destination-endpoint"

// conns is the number of connections: Envoy keeps one a worker thread.
const conns = 2

// streamLimit bounds one decision.
const streamLimit = 20 * time.Second

// Config says what to send.
type Config struct {
	// Addr is the picker's gRPC address.
	Addr string
	// Mode is how requests are sent.
	Mode Mode
	// Clients is how many streams are open at once.
	Clients int
	// For is how long to send.
	For time.Duration
	// Corpus makes the requests.
	Corpus *Corpus
	// Usage is the x-millrace-usage header of the engine's answer.
	Usage string
	// Chunks is how many pieces of the answer's body are sent; 0: it is not seen.
	Chunks int
}

// Result is what came of it.
type Result struct {
	// Decisions that named a host.
	Decisions int
	// Nowhere counts the answers that named no host.
	Nowhere int
	// Errors holds one text per failed stream, ten at most.
	Errors []string
	// Hosts is how many different lists of hosts were named.
	Hosts int
}

// runs counts the runs of this process: no two make the same requests, or the
// picker would have seen them all before.
var runs atomic.Uint64

// driver is one run.
type driver struct {
	Config

	// mu guards the fields below.
	mu     sync.Mutex
	result Result
	hosts  map[string]bool // lists of hosts that were named
}

// Run sends decisions until the time is over and returns what came of them.
func Run(ctx context.Context, c Config) (Result, error) {
	d := &driver{Config: c, hosts: map[string]bool{}}
	run := runs.Add(1)
	until := time.Now().Add(c.For)
	var clients []extprocv3.ExternalProcessorClient
	for range conns {
		conn, err := grpc.NewClient(c.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(16<<20))
		if err != nil {
			return Result{}, err
		}
		defer conn.Close()
		clients = append(clients, extprocv3.NewExternalProcessorClient(conn))
	}
	var wg sync.WaitGroup
	for i := range c.Clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(run, uint64(i)))
			for ctx.Err() == nil && time.Now().Before(until) {
				d.note(d.decide(ctx, clients[i%conns], r))
			}
		})
	}
	wg.Wait()
	d.result.Hosts = len(d.hosts)
	return d.result, ctx.Err()
}

func (d *driver) note(dest string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil && len(d.result.Errors) < 10:
		d.result.Errors = append(d.result.Errors, err.Error())
	case err != nil:
	case dest == "":
		d.result.Nowhere++
	default:
		d.result.Decisions++
		d.hosts[dest] = true
	}
}

// decide opens one stream, as Envoy does for one request, and returns the hosts.
func (d *driver) decide(ctx context.Context, cl extprocv3.ExternalProcessorClient, r *rand.Rand) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, streamLimit)
	defer cancel()
	stream, err := cl.Process(ctx)
	if err != nil {
		return "", err
	}
	s := exchange{stream: stream, chunks: d.Chunks}
	session, body := d.Corpus.next(r)
	s.request(d.Mode, session, body)
	s.response(d.Usage)
	s.end()
	return s.dest, s.err
}

// exchange is one stream. After an error its steps do nothing.
type exchange struct {
	stream extprocv3.ExternalProcessor_ProcessClient
	chunks int // of the answer's body
	dest   string
	err    error
}

// request plays the request's phase.
func (s *exchange) request(mode Mode, session string, body []byte) {
	s.send(&extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: requestHeaders(mode, session, body)},
		ProtocolConfig: s.protocol(mode),
	})
	if mode == Headers {
		s.receive()
		return
	}
	if mode == Buffered || mode == Streamed {
		s.receive()
	}
	s.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: true},
	}})
	for s.err == nil {
		answer := s.receive().GetRequestBody()
		if answer == nil {
			continue
		}
		streamed := answer.GetResponse().GetBodyMutation().GetStreamedResponse()
		if mode != FullDuplex || streamed.GetEndOfStream() {
			return
		}
	}
}

// response plays the response's headers and body.
func (s *exchange) response(usage string) {
	s.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: rig.HeaderMap(
			":status", "200",
			"content-type", "application/json",
			"x-envoy-attempt-count", "1",
			"x-millrace-usage", usage,
		)},
	}})
	s.receive()
	for i := range s.chunks {
		s.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
			ResponseBody: &extprocv3.HttpBody{Body: piece, EndOfStream: i == s.chunks-1},
		}})
		s.receive()
	}
}

// piece is one event of an answer's stream.
var piece = []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}` + "\n\n")

// end closes the stream as Envoy does when the exchange is over.
func (s *exchange) end() {
	if s.err != nil {
		return
	}
	_ = s.stream.CloseSend()
	for {
		if _, err := s.stream.Recv(); err != nil {
			if !errors.Is(err, io.EOF) {
				s.err = err
			}
			return
		}
	}
}

func (s *exchange) send(m *extprocv3.ProcessingRequest) {
	if s.err == nil {
		s.err = s.stream.Send(m)
	}
}

// receive reads one message and notes the hosts that it names.
func (s *exchange) receive() *extprocv3.ProcessingResponse {
	if s.err != nil {
		return nil
	}
	m, err := s.stream.Recv()
	if err != nil {
		s.err = err
		return nil
	}
	if i := m.GetImmediateResponse(); i != nil {
		s.err = fmt.Errorf("refused with %d: %.100s", i.GetStatus().GetCode(), i.GetBody())
		return nil
	}
	for _, c := range []*extprocv3.CommonResponse{m.GetRequestHeaders().GetResponse(), m.GetRequestBody().GetResponse()} {
		if dest := destination(c.GetHeaderMutation()); dest != "" {
			s.dest = dest
		}
	}
	if dest := m.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()[DestinationHeader].GetStringValue(); dest != "" {
		s.dest = dest
	}
	return m
}

func destination(m *extprocv3.HeaderMutation) string {
	for _, h := range m.GetSetHeaders() {
		if h.GetHeader().GetKey() == DestinationHeader {
			return string(h.GetHeader().GetRawValue()) + h.GetHeader().GetValue()
		}
	}
	return ""
}

func requestHeaders(mode Mode, session string, body []byte) *extprocv3.HttpHeaders {
	return &extprocv3.HttpHeaders{
		EndOfStream: mode == Headers,
		Headers: rig.HeaderMap(
			":method", "POST",
			":path", "/v1/chat/completions",
			":scheme", "http",
			":authority", "inference.local",
			"content-type", "application/json",
			"content-length", strconv.Itoa(len(body)),
			"user-agent", "epdriver/1",
			"accept", "*/*",
			"x-forwarded-proto", "http",
			"x-request-id", "5d3e1f40-0000-4000-8000-000000000000",
			"x-session-id", session,
		),
	}
}

func (s *exchange) protocol(mode Mode) *extprocv3.ProtocolConfiguration {
	body := map[Mode]filterv3.ProcessingMode_BodySendMode{
		Buffered:   filterv3.ProcessingMode_BUFFERED,
		FullDuplex: filterv3.ProcessingMode_FULL_DUPLEX_STREAMED,
		Streamed:   filterv3.ProcessingMode_STREAMED,
		Headers:    filterv3.ProcessingMode_NONE,
	}
	c := &extprocv3.ProtocolConfiguration{RequestBodyMode: body[mode]}
	if s.chunks > 0 {
		c.ResponseBodyMode = filterv3.ProcessingMode_STREAMED
	}
	return c
}
