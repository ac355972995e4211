package stream

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
)

// headOf is what is read of request headers, in the order in which they come.
func headOf(t *testing.T, f *fleet, pairs ...string) RequestHead {
	t.Helper()
	hs := &core.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		hs.Headers = append(hs.Headers, &core.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	b, err := proto.Marshal(&extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: hs}}})
	if err != nil {
		t.Fatal(err)
	}
	x := f.core.Begin()
	defer f.core.Finish(x)
	x.in.names = f.core.names()
	x.in.reset()
	if err := messages.Unmarshal(split(b), &x.in); err != nil {
		t.Fatal(err)
	}
	return x.in.Request
}

// asPicker is a fleet that understands clients of the endpoint-picker protocol.
func asPicker(conformance bool) *fleet {
	return newFleet(2, func(t *pick.Table) {
		t.Policy.Picker, t.Policy.Conformance, t.Policy.Flow = true, conformance, &flow.Policy{}
	})
}

func TestHeadersOfPickersClients(t *testing.T) {
	f := asPicker(false)
	for _, name := range []string{wire.ObjectiveHeader, wire.OldObjectiveHeader} {
		if head := headOf(t, f, name, "o"); head.Objective != "o" || len(head.Forbidden) != 0 {
			t.Errorf("%s: %+v", name, head)
		}
	}
	for _, name := range []string{wire.RenameHeader, wire.OldRenameHeader} {
		if head := headOf(t, f, name, "n"); head.Rename != "n" {
			t.Errorf("%s: %+v", name, head)
		}
	}
	for _, name := range []string{wire.FairnessHeader, wire.OldFairnessHeader} {
		alone := headOf(t, f, name, "team").Tenant
		before, behind := headOf(t, f, name, "team", "authorization", "Bearer k").Tenant, headOf(t, f, "authorization", "Bearer k", name, "team").Tenant
		if alone == 0 || before != alone || behind != alone {
			t.Errorf("%s: tenants %d, %d before a key and %d behind one", name, alone, before, behind)
		}
	}
	if head := headOf(t, f, wire.SelectionHeader, "127.0.0.1:20001"); head.Only != nil {
		t.Errorf("whoever asks chooses the endpoint: %v", head.Only)
	}
	if head := headOf(t, f, wire.DestinationHeader, "10.0.0.1:80"); !slices.Contains(head.Forbidden, wire.DestinationHeader) {
		t.Error("a client's choice of an endpoint is forwarded")
	}
	if head := headOf(t, newFleet(1), wire.ObjectiveHeader, "o", wire.RenameHeader, "n"); head.Objective != "" || head.Rename != "" {
		t.Errorf("headers count without a pool: %+v", head)
	}
}

// TestConformanceHeaders steers by the suite's header, and shows who answered.
func TestConformanceHeaders(t *testing.T) {
	f := asPicker(true)
	head := headOf(t, f, wire.SelectionHeader, "127.0.0.1:20001, 127.0.0.2")
	if !slices.Equal(head.Only, pick.Subset{"127.0.0.1:20001", "127.0.0.2"}) {
		t.Errorf("only %v", head.Only)
	}
	for served, want := range map[string]string{"127.0.0.1:20001": "127.0.0.1:20001", "": "fail: missing destination endpoint served metadata"} {
		x := f.core.Begin()
		run(x, post(by(Buffered)), bodyOf(`{"model":"m","messages":[]}`))
		ev := Event{Kind: ResponseHeaders, At: epoch}
		ev.Answer.Status, ev.Answer.Served = 200, served
		out := x.Step(&ev, nil)
		if len(out) != 1 || out[0].Served != want {
			t.Errorf("served by %q: %+v", served, out)
		}
		checkWrite(t, &out[0], nil)
		f.core.Finish(x)
	}
}

func TestGoalsOfHeaders(t *testing.T) {
	f := newFleet(1)
	tests := []struct {
		name    string
		headers []string
		want    pick.Goal
	}{
		{"none", nil, pick.Goal{}},
		{"ours", []string{wire.TTFTHeader, "500", wire.TPOTHeader, "50.5", wire.E2EHeader, "9000"}, pick.Goal{TTFT: 500, TPOT: 50.5, E2E: 9000}},
		{"llm-d's", []string{wire.LLMDTTFT, "400", wire.LLMDTPOT, "40"}, pick.Goal{TTFT: 400, TPOT: 40}},
		{"former names", []string{wire.OldTTFTHeader, "300", wire.OldTPOTHeader, "30"}, pick.Goal{TTFT: 300, TPOT: 30}},
		{"ours win", []string{wire.OldTTFTHeader, "1", wire.TTFTHeader, "3", wire.LLMDTTFT, "2", wire.LLMDTPOT, "2", wire.OldTPOTHeader, "1"}, pick.Goal{TTFT: 3, TPOT: 2}},
		{"no goals", []string{wire.TTFTHeader, "", wire.TPOTHeader, "-1", wire.E2EHeader, "1e300"}, pick.Goal{}},
		{"not a number does not win", []string{wire.LLMDTTFT, "2", wire.TTFTHeader, "soon"}, pick.Goal{TTFT: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			head := headOf(t, f, tt.headers...)
			if head.Goal != tt.want || len(head.Forbidden) != 0 {
				t.Errorf("%v, forbidden %q; want %v", head.Goal, head.Forbidden, tt.want)
			}
		})
	}
}
