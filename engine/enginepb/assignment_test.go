package enginepb

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func whole() *Assignment {
	return &Assignment{
		Generation: 5, Model: "m", Replica: "m-0",
		Stages: []*Stage{
			{Node: "a", ShardAddress: "127.0.0.1:1", EngineAddress: "127.0.0.1:2", Share: 1},
			{Node: "b", ShardAddress: "127.0.0.1:3", EngineAddress: "127.0.0.1:4", Share: 1},
		},
		Backend: &Backend{Kind: Backend_LLAMACPP, Weights: "w", ContextTokens: 128, Slots: 2, Threads: 1, Queue: 3, MaxBodyBytes: 1 << 20},
	}
}

func TestSameProcess(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Assignment)
		want   bool
	}{
		{"generation", func(a *Assignment) { a.Generation++ }, true},
		{"name of the replica", func(a *Assignment) { a.Replica = "n" }, true},
		{"stage", func(a *Assignment) { a.Stage = 1 }, true},
		{"whom to watch", func(a *Assignment) { a.Stages[1].EngineAddress = "127.0.0.1:9" }, true},
		{"queue", func(a *Assignment) { a.Backend.Queue++ }, true},
		{"largest body", func(a *Assignment) { a.Backend.MaxBodyBytes++ }, true},
		{"drain", func(a *Assignment) { a.Backend.Drain = durationpb.New(1) }, true},
		{"keep alive", func(a *Assignment) { a.Backend.KeepAlive = durationpb.New(time.Second) }, true},
		{"model", func(a *Assignment) { a.Model = "n" }, false},
		{"weights", func(a *Assignment) { a.Backend.Weights = "v" }, false},
		{"slots", func(a *Assignment) { a.Backend.Slots++ }, false},
		{"arguments", func(a *Assignment) { a.Backend.Args = []string{"--x"} }, false},
		{"share", func(a *Assignment) { a.Stages[0].Share = 2 }, false},
		{"shard", func(a *Assignment) { a.Stages[0].ShardAddress = "127.0.0.1:9" }, false},
		{"fewer stages", func(a *Assignment) { a.Stages = a.Stages[:1] }, false},
		{"release", func(a *Assignment) { *a = Assignment{Generation: 6} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := whole()
			tt.change(b)
			if got := SameProcess(whole(), b); got != tt.want {
				t.Errorf("SameProcess = %v, want %v", got, tt.want)
			}
		})
	}
	if !SameProcess(nil, &Assignment{Generation: 6}) {
		t.Error("nothing and a release are not the same")
	}
	one, other := whole(), whole()
	one.Stages, other.Stages = one.Stages[:1], other.Stages[:1]
	other.Stages[0].Share, other.Stages[0].ShardAddress = 7, ""
	if !SameProcess(one, other) {
		t.Error("the share of a whole replica makes a difference")
	}
}

func TestCheckIsAllOrNothing(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Assignment)
		want   string
	}{
		{"whole", func(*Assignment) {}, ""},
		{"release", func(a *Assignment) { *a = Assignment{Generation: 6} }, ""},
		{"release of a stage", func(a *Assignment) { *a = Assignment{Generation: 6, Stage: 1} }, "stage:"},
		{"no model", func(a *Assignment) { a.Model = "" }, "model:"},
		{"no replica", func(a *Assignment) { a.Replica = "" }, "replica:"},
		{"no stages", func(a *Assignment) { a.Stages = nil }, "stages:"},
		{"no backend", func(a *Assignment) { a.Backend = nil }, "backend:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := whole()
			tt.change(a)
			if err := a.ValidateAll(); err != nil {
				t.Fatalf("the definition's own rules: %v", err)
			}
			switch err := a.Check(); {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	if whole().ProcessKey() == "" || !proto.Equal(whole(), whole()) {
		t.Error("a whole assignment has no key")
	}
}
