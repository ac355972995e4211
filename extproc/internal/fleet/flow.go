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
func flowRules(rules *fleetpb.Flow) *flow.Policy {
	p := &flow.Policy{
		Queue: int(rules.GetQueue()), Allowance: int(rules.GetAllowance()), Reserve: rules.GetReserve(),
		DegradeAt: rules.GetDegradeAt(), TenantHeader: rules.GetTenantHeader(),
		Budget:     flow.Budget{Requests: int64(rules.GetRequestsPerMinute()), Tokens: int64(rules.GetTokensPerMinute())},
		AssumedMax: int(rules.GetAssumedMaxTokens()),
		Tenants:    int(cmp.Or(rules.GetTenants(), policy.Defaults().GetFlow().GetTenants())),
	}
	p.MaxWait[flow.Critical] = rules.GetMaxWaitCritical().AsDuration()
	p.MaxWait[flow.Standard] = rules.GetMaxWaitStandard().AsDuration()
	p.MaxWait[flow.Sheddable] = rules.GetMaxWaitSheddable().AsDuration()
	p.GatewayTimeout = cmp.Or(rules.GetGatewayTimeout().AsDuration(), flow.EveryGateway)
	p.Gateway = time.Duration(gatewayShare * float64(p.GatewayTimeout))
	if len(rules.GetDegrade()) > 0 {
		p.Degrade = make(map[string]string, len(rules.GetDegrade()))
	}
	for _, d := range rules.GetDegrade() {
		p.Degrade[d.GetModel()] = d.GetTo()
	}
	return p
}
