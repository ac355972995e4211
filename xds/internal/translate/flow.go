package translate

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

// flow is the policy's, as extproc gets it.
func flow(f config.Flow) *fleetpb.Flow {
	out := &fleetpb.Flow{
		Queue: uint32(f.Queue), Allowance: uint32(f.Allowance), Reserve: float64(f.Reserve),
		MaxWaitCritical:  durationpb.New(f.MaxWait.Critical.Duration),
		MaxWaitStandard:  durationpb.New(f.MaxWait.Standard.Duration),
		MaxWaitSheddable: durationpb.New(f.MaxWait.Sheddable.Duration),
		GatewayTimeout:   durationpb.New(f.GatewayTimeout.Duration),
		DegradeAt:        float64(f.DegradeAt), TenantHeader: f.Tenants.Header,
		RequestsPerMinute: uint64(f.Tenants.RequestsPerMinute), TokensPerMinute: uint64(f.Tenants.TokensPerMinute),
		Tenants: uint32(f.Tenants.Max),
	}
	for _, d := range f.Degrade {
		out.Degrade = append(out.Degrade, &fleetpb.Flow_Degrade{Model: d.Model, To: d.To})
	}
	return out
}
