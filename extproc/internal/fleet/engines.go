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
		if len(all) >= mostEngines && !slices.Contains(all, one) {
			one = pick.Engine{}
		}
		if !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b pick.Engine) int {
		return slices.Compare([]string{a.Kind, a.Version, a.Args[0], a.Args[1]}, []string{b.Kind, b.Version, b.Args[0], b.Args[1]})
	})
	m.Seed = session.Together(m.Seed, arguments(all))
	return m.SetEngines(all)
}

// mostEngines bounds how many different engines of a model are distinguished. Those beyond it
// are one more of which nothing is known.
const mostEngines = 16

// arguments are what engines give a model's template by default, each once; engines that
// give none don't matter.
func arguments(all []pick.Engine) []string {
	var out []string
	for _, e := range all {
		if text := e.Args[0] + e.Args[1]; text != "" {
			out = append(out, "template arguments "+text)
		}
	}
	return out
}
