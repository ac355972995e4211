package fleet

import (
	"slices"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/xds/fleetpb"
)

// setEngines says which engines serve a model of a table, and has its prompts' prefixes be
// others where engines have other arguments for its template. It returns whether the
// engines have changed.
func setEngines(m *pick.Model, of *fleetpb.ModelState) bool {
	var all []pick.Engine
	for _, e := range m.Endpoints {
		one := e.Engine
		if e.Ours() {
			one.Kind = of.GetEngine()
		}
		one.Args[0] = of.GetTemplateArgs()
		if !slices.Contains(all, one) && len(all) < mostEngines {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b pick.Engine) int {
		return slices.Compare([]string{a.Kind, a.Version, a.Args[0], a.Args[1]}, []string{b.Kind, b.Version, b.Args[0], b.Args[1]})
	})
	var args [2]string
	for _, e := range all {
		if e.Args != args {
			args = e.Args
			m.Seed ^= session.Seed("template arguments " + args[0] + args[1])
		}
	}
	return m.SetEngines(all)
}

// mostEngines bounds how many different engines of a model are distinguished.
const mostEngines = 16
