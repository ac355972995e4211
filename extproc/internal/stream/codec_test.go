package stream

import (
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
)

var messages = codec{encoding.GetCodecV2(grpcproto.Name)}

// checkRead checks that bytes which protobuf reads are read as protobuf does.
func checkRead(t *testing.T, f *fleet, b []byte) {
	t.Helper()
	x := f.core.Begin()
	defer f.core.Finish(x)
	in := &x.in
	in.names = f.core.names()
	in.reset()
	err := messages.Unmarshal(split(b), in)
	var m extproc.ProcessingRequest
	if proto.Unmarshal(b, &m) != nil {
		return // we check less
	}
	if err != nil {
		t.Fatalf("%.200x: %v; protobuf reads it", b, err)
	}
	want := Event{}
	if known := readEvent(&m, f.table.Policy, &want); known != in.known {
		t.Fatalf("%.200x: known = %v, want %v", b, in.known, known)
	}
	if p := f.table.Policy.Flow; p != nil {
		readFlow(m.GetRequestHeaders().GetHeaders(), f.core, p, &want.Request)
	}
	if in.observed != m.GetObservabilityMode() {
		t.Fatalf("%.200x: observed = %v", b, in.observed)
	}
	if string(in.Body) == string(want.Body) {
		want.Body = in.Body // nil or empty
	}
	if diff := cmp.Diff(want, in.Event, cmp.AllowUnexported(AnswerHead{}, usageOf{})); diff != "" {
		t.Fatalf("%.200x: %s", b, diff)
	}
}

// readFlow reads who asks, and how long they wait.
func readFlow(hs *core.HeaderMap, c *Core, p *flow.Policy, head *RequestHead) {
	for _, h := range hs.GetHeaders() {
		switch key := h.GetKey(); {
		case key == "x-request-timeout-ms", key == "x-envoy-expected-rq-timeout-ms":
			ms, err := strconv.Atoi(value(h))
			if wait := time.Duration(ms) * time.Millisecond; err == nil && ms > 0 && ms < 1<<31 && (head.Patience == 0 || wait < head.Patience) {
				head.Patience = wait
			}
		case p.TenantHeader == "" && (key == "authorization" || key == "x-api-key"), p.TenantHeader != "" && key == p.TenantHeader:
			words := strings.Split(value(h), " ")
			space := byHeader
			if p.TenantHeader == "" {
				space = byKey
			}
			head.Tenant = maphash.String(c.tenants.seeds[space], words[len(words)-1]) | 1
			if head.TenantName = words[len(words)-1]; p.TenantHeader == "" {
				head.TenantName = fmt.Sprintf("key %.4x", sha256.Sum256([]byte(head.TenantName)))
			} else if head.Owner = head.TenantName; len(head.TenantName) > 63 || !utf8.ValidString(head.TenantName) {
				head.TenantName = fmt.Sprintf("value %.4x", sha256.Sum256([]byte(head.TenantName)))
			}
		}
	}
}

// split is a message as it comes in frames.
func split(b []byte) mem.BufferSlice {
	n := len(b) / 2
	return mem.BufferSlice{mem.Copy(b[:n], buffers), mem.Copy(b[n:], buffers)}
}

// Some of requests.
const (
	duplexHeaders = 3
	wholeBody     = 5
	answerHeaders = 12
)

// requests are messages as Envoy sends them, and some that it doesn't.
func requests() []*extproc.ProcessingRequest {
	hs := func(pairs ...string) *core.HeaderMap {
		m := &core.HeaderMap{}
		for i := 0; i < len(pairs); i += 2 {
			h := &core.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])}
			if i%4 == 0 {
				h = &core.HeaderValue{Key: pairs[i], Value: pairs[i+1]}
			}
			m.Headers = append(m.Headers, h)
		}
		return m
	}
	served := &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"other":          {Fields: map[string]*structpb.Value{wire.ServedKey: structpb.NewStringValue("1.1.1.1:1")}},
		wire.LBNamespace: {Fields: map[string]*structpb.Value{"a": structpb.NewNumberValue(1), wire.ServedKey: structpb.NewStringValue("10.0.0.1:80")}},
	}}
	odd := &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
		wire.LBNamespace: {Fields: map[string]*structpb.Value{wire.ServedKey: structpb.NewBoolValue(true)}},
	}}
	text := structpb.NewStringValue
	hint := func(v *structpb.Value) *core.Metadata {
		return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			wire.LBNamespace: {}, wire.SubsetNamespace: {Fields: map[string]*structpb.Value{"a": text("b"), wire.SubsetKey: v}},
		}}
	}
	list := structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{text("10.0.0.2:80"), structpb.NewNumberValue(3), text("[::1]"), text("10.0.0.1:80, 10.0.0.3")}})
	head := hs(":method", "POST", ":path", "/v1/chat/completions", "content-type", "application/json", "content-length", "12",
		"cookie", "a=b", "cookie", "c=d", "x-session-id", "s1", "x-millrace-priority", "critical", "x-gateway-x", "1", "x-millrace-y", "2",
		"authorization", "Bearer k 1", "x-request-timeout-ms", "900", "x-envoy-expected-rq-timeout-ms", "800", "x-api-key", "", "x-tenant", "t u",
		wire.OldTTFTHeader, "700", wire.LLMDTTFT, "600", wire.TPOTHeader, "50", wire.LLMDTPOT, "40", wire.E2EHeader, "9000",
		wire.RetriesHeader, "3", "content-encoding", "identity", "content-length", "12", "", "")
	answer := hs(":status", "200", wire.AttemptsHeader, "2", wire.LoadHeader, "TEXT a=1", wire.UsageHeader, "prompt=1", "x", "y")
	used, err := anypb.New(&aiv3.TokenUsage{
		Model: "m", InputTokens: wrapperspb.UInt64(12), OutputTokens: wrapperspb.UInt64(34), TotalTokens: wrapperspb.UInt64(46),
		InputTokenDetails: &aiv3.InputTokenDetails{CachedTokens: wrapperspb.UInt64(5)}, ExtractionStatus: aiv3.TokenUsage_COMPLETE,
	})
	if err != nil {
		panic(err)
	}
	usage := &core.Metadata{TypedFilterMetadata: map[string]*anypb.Any{"other": {}, wire.TokenUsageNamespace: used}}
	foreignUsage := hs("x-prompt-tokens", "9", "x-generated-tokens", "8")
	duplex := &extproc.ProtocolConfiguration{RequestBodyMode: filter.ProcessingMode_FULL_DUPLEX_STREAMED, ResponseBodyMode: filter.ProcessingMode_STREAMED}
	return []*extproc.ProcessingRequest{
		{},
		{Request: &extproc.ProcessingRequest_RequestHeaders{}},
		{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: head, EndOfStream: true}}},
		{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: head}}, ProtocolConfig: duplex},
		{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: head}}, ProtocolConfig: &extproc.ProtocolConfiguration{}},
		{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: []byte(hello), EndOfStream: true}}},
		{Request: &extproc.ProcessingRequest_RequestHeaders{}, MetadataContext: hint(list)},
		{Request: &extproc.ProcessingRequest_RequestHeaders{}, MetadataContext: hint(text("10.0.0.1:80,,"))},
		{Request: &extproc.ProcessingRequest_RequestHeaders{}, MetadataContext: hint(structpb.NewListValue(&structpb.ListValue{}))},
		{Request: &extproc.ProcessingRequest_RequestHeaders{}, MetadataContext: hint(structpb.NewNumberValue(1))},
		{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: make([]byte, 5000)}}, ObservabilityMode: true, ProtocolConfig: duplex},
		{Request: &extproc.ProcessingRequest_RequestTrailers{RequestTrailers: &extproc.HttpTrailers{Trailers: head}}},
		{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extproc.HttpHeaders{Headers: answer}}, MetadataContext: served},
		{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extproc.HttpHeaders{Headers: answer}}, MetadataContext: odd},
		{Request: &extproc.ProcessingRequest_ResponseBody{ResponseBody: &extproc.HttpBody{Body: []byte("data: 1")}}, Attributes: map[string]*structpb.Struct{"a": {}}},
		{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extproc.HttpHeaders{Headers: answer}}, MetadataContext: served, Attributes: map[string]*structpb.Struct{
			"envoy.filters.http.ext_proc": {Fields: map[string]*structpb.Value{"upstream.port": structpb.NewNumberValue(80), "upstream.address": text("10.0.0.2:80")}},
			"other":                       {Fields: map[string]*structpb.Value{"upstream.address": text("10.0.0.3:80")}},
		}},
		{Request: &extproc.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extproc.HttpTrailers{Trailers: answer}}},
		{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: hs(wire.DebugHeader, "1")}}},
		{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: hs(wire.DebugHeader, "2")}}},
		{Request: &extproc.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extproc.HttpTrailers{Trailers: answer}}, MetadataContext: usage},
		{Request: &extproc.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extproc.HttpTrailers{Trailers: foreignUsage}}},
	}
}

// readers are fleets whose policies name headers.
func readers() []*fleet {
	return []*fleet{newFleet(1), newFleet(1, oneSlot), newFleet(1, oneSlot, func(t *pick.Table) { t.Policy.Flow.TenantHeader = "x-tenant" })}
}

func TestReadsAsProtobufDoes(t *testing.T) {
	fleets := readers()
	var all [][]byte
	for _, m := range requests() {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
		for _, f := range fleets {
			checkRead(t, f, b)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 1500 {
		// Messages that follow each other merge into one, and some bytes change.
		b := append(append([]byte(nil), all[r.IntN(len(all))]...), all[r.IntN(len(all))]...)
		for range r.IntN(3) {
			if len(b) > 0 {
				b[r.IntN(len(b))] = byte(r.IntN(256))
			}
		}
		checkRead(t, fleets[i%len(fleets)], b)
	}
}

func FuzzRead(f *testing.F) {
	for _, m := range requests() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	fleets := readers()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fl := range fleets {
			checkRead(t, fl, b)
		}
	})
}

// checkWrite checks that a reply's bytes are what protobuf makes of it.
func checkWrite(t *testing.T, r *Reply, hold mem.Buffer) {
	t.Helper()
	var o outbound
	o.reply, o.hold = r, hold
	b, err := messages.Marshal(&o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	var got extproc.ProcessingResponse
	if err := proto.Unmarshal(b.Materialize(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(writeReply(r), &got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

// writeAll compares what a stream of events is answered.
func writeAll(t *testing.T, fl *fleet, script []byte) {
	x := fl.core.Begin()
	defer fl.core.Finish(x)
	evs := events(script, fl)
	for i := range evs {
		hold := mem.Copy(append([]byte("in front"), evs[i].Body...), buffers)
		if evs[i].Body != nil {
			evs[i].Body = hold.ReadOnlyData()[len("in front"):]
		}
		for _, reply := range x.Step(&evs[i], nil) {
			checkWrite(t, &reply, hold)
		}
		hold.Free()
	}
}

// TestWritesAsProtobufDoes compares what random streams are answered.
func TestWritesAsProtobufDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	fleets := []*fleet{newFleet(5, canary), busy()}
	for i := range 600 {
		seed := make([]byte, 1+r.IntN(120))
		for i := range seed {
			seed[i] = byte(r.IntN(256))
		}
		writeAll(t, fleets[i%2], seed)
		checkWrite(t, &Reply{Kind: Extend, Wait: time.Duration(r.Int64N(1 << r.IntN(50)))}, nil)
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("\x01\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00"))
	f.Add([]byte("some bytes that make events in an order of their own, why not"))
	f.Fuzz(func(t *testing.T, script []byte) {
		writeAll(t, newFleet(5, canary), script)
		writeAll(t, busy(), script)
	})
}

// TestChunkIsNotCopied holds the promise that a body goes back as it came.
func TestChunkIsNotCopied(t *testing.T) {
	hold := mem.Copy(make([]byte, 100<<10), buffers)
	defer hold.Free()
	o := outbound{hold: hold}
	b := o.chunk(hold.ReadOnlyData()[100:5000])
	defer b.Free()
	if &b.ReadOnlyData()[0] != &hold.ReadOnlyData()[100] || b.Len() != 4900 {
		t.Error("chunk copies the body")
	}
}

// exchange takes one message in, writes the replies and counts the decisions.
func exchange(t *testing.T, x *Exchange, b mem.BufferSlice) (decisions int) {
	var replies [4]Reply
	x.in.reset()
	if err := messages.Unmarshal(b, &x.in); err != nil {
		t.Fatal(err)
	}
	some := x.Step(&x.in.Event, replies[:0])
	for i := range some {
		x.out.reply, x.out.hold = &some[i], x.in.hold
		if _, err := messages.Marshal(&x.out); err != nil {
			t.Fatal(err)
		}
		if some[i].Decision != nil {
			decisions++
		}
	}
	return decisions
}
