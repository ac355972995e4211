package fleet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/xds/fleetpb"
)

func TestFlowFromAFile(t *testing.T) {
	f, err := config.ParseFleet("fleet.yaml", []byte(`
endpoints: [{address: "10.0.0.2:8000", models: [m, small]}]
policy:
  flow:
    queue: 7
    maxWait: {critical: 3s}
    gatewayTimeout: 10s
    degrade: [{model: m, to: small}]
    tenants: {header: x-tenant, requestsPerMinute: 9, tokensPerMinute: 90, max: 5}
`))
	if err != nil {
		t.Fatal(err)
	}
	s := newState(false)
	s.setPolicy(policy.State(f.Policy, nil, 1))
	want := &flow.Policy{
		Queue: 7, Allowance: 1, Reserve: float64(float32(0.1)), Gateway: 9 * time.Second, GatewayTimeout: 10 * time.Second, DegradeAt: 0.5,
		MaxWait: [3]time.Duration{3 * time.Second, 20 * time.Second, 5 * time.Second},
		Degrade: map[string]string{"m": "small"}, TenantHeader: "x-tenant", AssumedMax: 1024, Budget: flow.Budget{Requests: 9, Tokens: 90}, Tenants: 5,
	}
	if diff := cmp.Diff(want, s.policy.Flow); diff != "" {
		t.Errorf("flow (-want +got):\n%s", diff)
	}
}

func TestFlowOfAnOlderXds(t *testing.T) {
	s := newState(true)
	s.setPolicy(&fleetpb.PolicyState{})
	f := s.policy.Flow
	if f.Queue == 0 || f.Gateway > flow.EveryGateway || f.MaxWait[flow.Standard] <= f.Gateway || f.Tenants == 0 {
		t.Errorf("flow %+v, want a queue that waits no longer than every gateway allows", f)
	}
}
