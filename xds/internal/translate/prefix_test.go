package translate

import (
	"slices"
	"testing"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
)

// TestPathPrefixes has every path of the API be there behind each prefix, too, and be
// forwarded without it.
func TestPathPrefixes(t *testing.T) {
	f := config.Default()
	f.Policy.Spec.PathPrefixes = []string{"/llm", "/team-a/llm"}
	state := desired.Next(nil, f, nil)
	var begins, exact, below []string // what is matched
	rewritten := map[string]string{}
	for _, r := range routes(state).GetVirtualHosts()[0].GetRoutes() {
		m := r.GetMatch()
		begins, exact, below = append(begins, m.GetPrefix()), append(exact, m.GetPath()), append(below, m.GetPathSeparatedPrefix())
		if m.GetPathSeparatedPrefix() != "" || m.GetPrefix() != "" && r.GetRoute() != nil {
			rewritten[m.GetPrefix()+m.GetPathSeparatedPrefix()] = r.GetRoute().GetPrefixRewrite()
		}
	}
	for _, front := range append(f.Policy.Spec.PathPrefixes, "") {
		for a := apis.Chat; a < apis.Len; a++ {
			for _, p := range a.Row().Outside("/v1/") {
				if !slices.Contains(below, front+p) || rewritten[front+p] != a.Row().Path {
					t.Errorf("%s becomes %q, want %s", front+p, rewritten[front+p], a.Row().Path)
				}
			}
		}
		if !slices.Contains(exact, front+"/v1/models") || !slices.Contains(exact, front+"/v1/models/"+f.Models[0].Metadata.Name) {
			t.Errorf("nobody lists the models behind %q", front)
		}
		want := "/v1/"
		if front == "" {
			want = ""
		}
		if !slices.Contains(begins, front+"/v1/") || rewritten[front+"/v1/"] != want {
			t.Errorf("%s/v1/ becomes %q, want %q", front, rewritten[front+"/v1/"], want)
		}
	}
}
