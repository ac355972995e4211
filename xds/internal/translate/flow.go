package translate

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

// flow is the policy's, as each of so many extprocs gets it: Envoy asks them in turn, so
// that each sees its part of what a tenant uses, and has that part of the budget.
func flow(f config.Flow, extprocs int) *fleetpb.Flow {
	part := func(n int) uint64 { return uint64((n + max(1, extprocs) - 1) / max(1, extprocs)) }
	out := &fleetpb.Flow{
		Queue: uint32(f.Queue), Allowance: uint32(f.Allowance), Reserve: float64(f.Reserve),
		MaxWaitCritical:  durationpb.New(f.MaxWait.Critical.Duration),
		MaxWaitStandard:  durationpb.New(f.MaxWait.Standard.Duration),
		MaxWaitSheddable: durationpb.New(f.MaxWait.Sheddable.Duration),
		GatewayTimeout:   durationpb.New(f.GatewayTimeout.Duration),
		DegradeAt:        float64(f.DegradeAt), TenantHeader: f.Tenants.Header,
		RequestsPerMinute: part(int(f.Tenants.RequestsPerMinute)), TokensPerMinute: part(int(f.Tenants.TokensPerMinute)),
		Tenants: uint32(f.Tenants.Max),
	}
	for _, d := range f.Degrade {
		out.Degrade = append(out.Degrade, &fleetpb.Flow_Degrade{Model: d.Model, To: d.To})
	}
	return out
}
