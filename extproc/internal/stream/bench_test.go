package stream

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/e2e/epdriver"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/prompt"
)

// BenchmarkExchange measures whole exchanges without gRPC, read from bytes and written to
// bytes: those of the rows P1, P3 and P4 of e2e/bench. With MILLRACE_CACHE set tokens are
// counted by the model there.
func BenchmarkExchange(b *testing.B) {
	for _, size := range []int{2 << 10, 64 << 10, 400 << 10} {
		b.Run(fmt.Sprintf("turns/%dKiB", size>>10), func(b *testing.B) {
			n := min(256, max(16, 16<<20/size))
			benchmarkExchange(b, size, epdriver.NewCorpus("m", size, n, n/8))
		})
		b.Run(fmt.Sprintf("cold/%dKiB", size>>10), func(b *testing.B) {
			benchmarkExchange(b, size, epdriver.NewColdCorpus("m", size))
		})
	}
}

func benchmarkExchange(b *testing.B, size int, corpus *epdriver.Corpus) {
	f := newFleet(64, func(t *pick.Table) {
		t.Policy.Cookies, t.Policy.MaxBody, t.Policy.Explain = nil, 16<<20, false
		t.Policy.Prefixes = prefix.New(100000, time.Hour)
	})
	if cache := os.Getenv("MILLRACE_CACHE"); cache != "" {
		c, err := prompt.Load(filepath.Join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
		if err != nil {
			b.Fatal(err)
		}
		f.model.SetCounter(c)
	}
	head := func(pairs ...string) *extproc.HttpHeaders {
		m := &core.HeaderMap{}
		for i := 0; i < len(pairs); i += 2 {
			m.Headers = append(m.Headers, &core.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
		}
		return &extproc.HttpHeaders{Headers: m}
	}
	bytes := func(m *extproc.ProcessingRequest) mem.BufferSlice {
		b, _ := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}
	}
	answer := bytes(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: head(
		":status", "200", "content-type", "application/json", "x-envoy-attempt-count", "1",
		"x-millrace-usage", "prompt=420,cached=210,completion=128,prefill_ms=42.0,decode_ms=2500.0")}})
	r := rand.New(rand.NewPCG(1, 2))
	var heads, bodies []mem.BufferSlice
	for i := range 512 {
		body := corpus.Any(i, r)
		heads = append(heads, bytes(&extproc.ProcessingRequest{
			Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: head(
				":method", "POST", ":path", "/v1/chat/completions", ":scheme", "http", ":authority", "inference.local",
				"content-type", "application/json", "content-length", fmt.Sprint(len(body)), "user-agent", "epdriver/1", "accept", "*/*",
				"x-forwarded-proto", "http", "x-request-id", "5d3e1f40-0000-4000-8000-000000000000", "x-session-id", fmt.Sprintf("session-%d", i))},
			ProtocolConfig: &extproc.ProtocolConfiguration{RequestBodyMode: filter.ProcessingMode_BUFFERED},
		}))
		bodies = append(bodies, bytes(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: body, EndOfStream: true}}}))
	}
	texts := [][]int{} // where texts begin that are new each time
	for _, m := range bodies {
		texts = append(texts, fresh(m[0].ReadOnlyData(), corpus.Cold()))
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		for _, at := range texts[i%len(texts)] {
			copy(bodies[i%len(bodies)][0].ReadOnlyData()[at:], fmt.Sprintf("%08d", i))
		}
		x := f.core.Begin()
		x.in.names = f.core.names()
		for _, m := range []mem.BufferSlice{heads[i%len(heads)], bodies[i%len(bodies)], answer} {
			take(b, x, m)
		}
		x.in.reset()
		f.core.Finish(x)
	}
}

// fresh returns where in a message the texts begin that no other request has: the last one,
// or all.
func fresh(message []byte, all bool) (at []int) {
	for i := 0; ; {
		n := strings.Index(string(message[i:]), textKey)
		if n < 0 {
			break
		}
		i += n + len(textKey)
		at = append(at, i)
	}
	if !all {
		at = at[len(at)-1:]
	}
	return at
}

const textKey = `"content":"`

// take takes one message in and writes the replies.
func take(b *testing.B, x *Exchange, m mem.BufferSlice) {
	x.in.reset()
	if err := messages.Unmarshal(m, &x.in); err != nil {
		b.Fatal(err)
	}
	x.in.At = time.Now()
	some := x.Step(&x.in.Event, x.replies[:0])
	for i := range some {
		x.out.reply, x.out.hold = &some[i], x.in.hold
		if _, err := messages.Marshal(&x.out); err != nil {
			b.Fatal(err)
		}
	}
}
