package fleet

import (
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/xds/fleetpb"
)

// rewrites returns the models that serve requests for other names, by these.
func rewrites(from []*fleetpb.Rewrite) map[string]*pick.Rewrite {
	if len(from) == 0 {
		return nil
	}
	all := make(map[string]*pick.Rewrite, len(from))
	for _, w := range from {
		one := &pick.Rewrite{Model: w.GetModel()}
		for _, t := range w.GetTo() {
			one.To = append(one.To, pick.Target{Model: t.GetModel(), Weight: float64(max(1, t.GetWeight()))})
		}
		all[one.Model] = one
	}
	return all
}
