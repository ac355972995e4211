//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package stream

import (
	"testing"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

func TestDecisionAllocatesLittle(t *testing.T) {
	f := newFleet(8, oneSlot)
	f.table.Policy.Cookies = nil
	head, body := post(), bodyOf(hello)
	var out [4]Reply
	n := testing.AllocsPerRun(200, func() {
		x := f.core.Begin()
		x.Step(&head, out[:0])
		x.Step(&body, out[:0])
		f.core.Finish(x)
	})
	// The session's name for people, and what the test's counter makes.
	if n > 4 {
		t.Errorf("a decision allocates %v times, want at most 4", n)
	}
}

// TestExchangeAllocatesLittle holds the promise that a whole exchange, read from
// bytes and written to bytes, allocates little outside gRPC.
func TestExchangeAllocatesLittle(t *testing.T) {
	f := newFleet(8)
	all := requests()
	var messages []mem.BufferSlice
	for _, m := range []*extproc.ProcessingRequest{all[duplexHeaders], all[wholeBody], all[answerHeaders]} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, mem.BufferSlice{mem.SliceBuffer(b)})
	}
	decisions := 0
	n := testing.AllocsPerRun(200, func() {
		x := f.core.Begin()
		defer f.core.Finish(x)
		x.in.names = f.core.names()
		for _, b := range messages {
			decisions += exchange(t, x, b)
		}
	})
	if n > 22 || decisions == 0 {
		t.Errorf("%v allocations in an exchange, %d decisions; want at most 22", n, decisions)
	}
}
