package fleet

import (
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/xds/fleetpb"
)

// rewrites returns the models that serve requests for other names, by these.
func rewrites(said []*fleetpb.Rewrite) map[string]*pick.Rewrite {
	if len(said) == 0 {
		return nil
	}
	all := make(map[string]*pick.Rewrite, len(said))
	for _, w := range said {
		one := &pick.Rewrite{Model: w.GetModel()}
		for _, t := range w.GetTo() {
			one.To = append(one.To, pick.Target{Model: t.GetModel(), Weight: float64(max(1, t.GetWeight()))})
		}
		all[one.Model] = one
	}
	return all
}

// rewritesOf are a fleet file's, as xds would say them.
func rewritesOf(all []config.Rewrite) (out []*fleetpb.Rewrite) {
	for _, w := range all {
		one := &fleetpb.Rewrite{Model: w.Model}
		for _, t := range w.To {
			one.To = append(one.To, &fleetpb.Rewrite_Target{Model: t.Model, Weight: uint32(t.Weight)})
		}
		out = append(out, one)
	}
	return out
}
