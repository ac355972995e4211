package fleet

import (
	"millrace.dev/millrace/extproc/internal/pick"
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
