package fleet

import (
	"cmp"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/xds/fleetpb"
)

// gatewayShare is what of the gateway's patience a request may wait: the rest is for
// the answer to get there.
const gatewayShare = 0.9

// flowRules returns the rules for when endpoints are busy.
func flowRules(said *fleetpb.Flow) *flow.Policy {
	p := &flow.Policy{
		Queue: int(said.GetQueue()), Allowance: int(said.GetAllowance()), Reserve: said.GetReserve(),
		DegradeAt: said.GetDegradeAt(), TenantHeader: said.GetTenantHeader(),
		Budget:  flow.Budget{Requests: int64(said.GetRequestsPerMinute()), Tokens: int64(said.GetTokensPerMinute())},
		Tenants: int(cmp.Or(said.GetTenants(), policy.Defaults().GetFlow().GetTenants())),
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
