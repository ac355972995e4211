package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

func TestBudgetsAreDividedAmongExtprocs(t *testing.T) {
	var f config.Flow
	f.Tenants.RequestsPerMinute, f.Tenants.TokensPerMinute = 10, 1000
	for extprocs, want := range map[int][2]uint64{0: {10, 1000}, 1: {10, 1000}, 3: {4, 334}, 16: {1, 63}} {
		if got := Flow(f, extprocs); got.GetRequestsPerMinute() != want[0] || got.GetTokensPerMinute() != want[1] {
			t.Errorf("%d extprocs: %d requests and %d tokens each, want %v", extprocs, got.GetRequestsPerMinute(), got.GetTokensPerMinute(), want)
		}
	}
	f.Tenants.RequestsPerMinute = 0
	if got := Flow(f, 3).GetRequestsPerMinute(); got != 0 {
		t.Errorf("no budget became %d", got)
	}
}

func TestDefaultsPassTheContract(t *testing.T) {
	if err := Defaults().ValidateAll(); err != nil {
		t.Error(err)
	}
}

func TestComplete(t *testing.T) {
	older := func(change func(*fleetpb.PolicyState)) *fleetpb.PolicyState {
		m := Defaults()
		m.SessionCookie, m.Flow.GatewayTimeout = "", nil
		change(m)
		return m
	}
	tests := []struct {
		name     string
		in, want *fleetpb.PolicyState
	}{
		{
			name: "an older xds gets config's defaults, and no patience of the gateway",
			in:   &fleetpb.PolicyState{},
			want: older(func(*fleetpb.PolicyState) {}),
		},
		{
			name: "who names few candidates gets no more by priority",
			in:   &fleetpb.PolicyState{Candidates: 1},
			want: older(func(m *fleetpb.PolicyState) { m.Candidates, m.CandidatesCritical, m.CandidatesSheddable = 1, 1, 1 }),
		},
		{
			name: "zeros of a flow that is there are meant",
			in:   &fleetpb.PolicyState{Flow: &fleetpb.Flow{GatewayTimeout: durationpb.New(1)}, SessionCookie: "c"},
			want: older(func(m *fleetpb.PolicyState) {
				m.Flow, m.SessionCookie = &fleetpb.Flow{GatewayTimeout: durationpb.New(1)}, "c"
			}),
		},
		{
			name: "an idle time of less than a second stays, one that is none does not",
			in:   &fleetpb.PolicyState{SessionIdle: durationpb.New(1)},
			want: older(func(m *fleetpb.PolicyState) { m.SessionIdle = durationpb.New(1) }),
		},
		{
			name: "a whole one stays as it is",
			in:   Defaults(),
			want: Defaults(),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := proto.CloneOf(tt.in)
			if diff := cmp.Diff(tt.want, Complete(tt.in), protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.in, protocmp.Transform()); diff != "" {
				t.Errorf("the argument was changed:\n%s", diff)
			}
		})
	}
}
