package fleet

import (
	"cmp"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

// gatewayShare is what of the gateway's patience a request may wait: the rest is for
// the answer to get there.
const gatewayShare = 0.9

// flowRules returns the rules for when endpoints are busy; said is nil if an older
// xds says none.
func flowRules(said *fleetpb.Flow) *flow.Policy {
	if said == nil {
		const wait = 5 * time.Second
		said = &fleetpb.Flow{
			Queue: 256, Allowance: 1, Reserve: 0.1, DegradeAt: 0.5,
			MaxWaitCritical: durationpb.New(wait), MaxWaitStandard: durationpb.New(wait), MaxWaitSheddable: durationpb.New(wait),
		}
	}
	p := &flow.Policy{
		Queue: int(said.GetQueue()), Allowance: int(said.GetAllowance()), Reserve: said.GetReserve(),
		DegradeAt: said.GetDegradeAt(), TenantHeader: said.GetTenantHeader(),
		Budget:  flow.Budget{Requests: int64(said.GetRequestsPerMinute()), Tokens: int64(said.GetTokensPerMinute())},
		Tenants: int(cmp.Or(said.GetTenants(), 10_000)),
	}
	p.MaxWait[flow.Critical] = said.GetMaxWaitCritical().AsDuration()
	p.MaxWait[flow.Standard] = said.GetMaxWaitStandard().AsDuration()
	p.MaxWait[flow.Sheddable] = said.GetMaxWaitSheddable().AsDuration()
	p.GatewayTimeout = cmp.Or(said.GetGatewayTimeout().AsDuration(), flow.EveryGateway)
	p.Gateway = time.Duration(gatewayShare * float64(p.GatewayTimeout))
	if len(said.GetDegrade()) > 0 {
		p.Degrade = make(map[string]string, len(said.GetDegrade()))
	}
	for _, d := range said.GetDegrade() {
		p.Degrade[d.GetModel()] = d.GetTo()
	}
	return p
}

// flowOf is a fleet file's, as xds would say it.
func flowOf(f config.Flow) *fleetpb.Flow {
	out := &fleetpb.Flow{
		Queue: uint32(f.Queue), Allowance: uint32(f.Allowance), Reserve: float64(f.Reserve),
		MaxWaitCritical: durationpb.New(f.MaxWait.Critical.Duration), MaxWaitStandard: durationpb.New(f.MaxWait.Standard.Duration),
		MaxWaitSheddable: durationpb.New(f.MaxWait.Sheddable.Duration), GatewayTimeout: durationpb.New(f.GatewayTimeout.Duration),
		DegradeAt: float64(f.DegradeAt), TenantHeader: f.Tenants.Header, Tenants: uint32(f.Tenants.Max),
		RequestsPerMinute: uint64(f.Tenants.RequestsPerMinute), TokensPerMinute: uint64(f.Tenants.TokensPerMinute),
	}
	for _, d := range f.Degrade {
		out.Degrade = append(out.Degrade, &fleetpb.Flow_Degrade{Model: d.Model, To: d.To})
	}
	return out
}
