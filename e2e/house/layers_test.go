package house

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layer is a rule about what packages may import; tests of theirs, too, may not.
type layer struct {
	of  []string // folders
	not []string // folders of ours, or import paths of others, that they must not import
	why string
}

var layers = []layer{
	{
		of:  []string{"internal/wire"},
		not: []string{"internal", "xds", "extproc", "engine", "nodeagent", "envoy"},
		why: "everybody imports the words of the wire",
	},
	{
		of:  []string{"internal/inventory", "internal/probe", "internal/scrape", "internal/kvevents", "internal/blocks"},
		not: []string{"xds/fleetpb"},
		why: "who exists and how it is are in words of their own; xds and extproc turn them into resources",
	},
	{
		of:  []string{"internal/inventory"},
		not: []string{"internal/probe"},
		why: "who exists is known without asking them; both meet in internal/endpoints",
	},
	{
		of:  []string{"internal/probe"},
		not: []string{"internal/inventory", "internal/desired"},
		why: "how endpoints are does not depend on who names them; both meet in internal/endpoints",
	},
	{
		of:  []string{"internal/desired", "internal/config"},
		not: []string{"xds/fleetpb", "engine/enginepb"},
		why: "what is desired does not depend on how programs say it to each other",
	},
	{
		of:  []string{"engine/internal/api", "engine/internal/meter", "engine/internal/status", "engine/internal/admit", "engine/internal/cachelog", "engine/internal/supervise", "engine/internal/backend"},
		not: []string{"engine/internal/llamacpp", "engine/internal/vllm", "engine/internal/openai"},
		why: "they know backends through the door, engine/internal/backend, alone",
	},
	{
		of:  []string{"extproc/internal/pick", "extproc/internal/prefix", "extproc/internal/session", "extproc/internal/openai", "xds/internal/layout", "xds/internal/weight"},
		not: []string{"net/http", "os/exec", "google.golang.org/grpc"},
		why: "decisions are functions; what does I/O calls them",
	},
	{
		of:  []string{"extproc/internal/pick", "extproc/internal/stream", "extproc/internal/openai", "extproc/internal/flow"},
		not: []string{"extproc/internal/fleet", "xds/fleetpb"},
		why: "the fleet becomes a table at one edge, extproc/internal/fleet",
	},
	{
		of:  []string{"internal", "xds", "extproc", "engine", "nodeagent", "envoy"},
		not: []string{"e2e"},
		why: "tests and their tools import programs' packages, not the other way round",
	},
}

// below is whether a package lies in one of the folders.
func below(name string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return name == f || strings.HasPrefix(name, f+"/") })
}

// crossed returns the layer's rule that an import breaks.
func crossed(dir, imported string) (layer, bool) {
	for _, l := range layers {
		name, ours := strings.CutPrefix(imported, module+"/")
		if !below(dir, l.of) {
			continue
		}
		if ours && below(name, l.not) && name != dir || !ours && slices.Contains(l.not, imported) {
			return l, true
		}
	}
	return layer{}, false
}

// TestLayers holds that packages import only what lies below them.
func TestLayers(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if l, bad := crossed(s.dir(), name); bad && !s.test() && !s.generated() {
				t.Errorf("%s:%d: imports %s; %s", s.name, s.line(spec.Pos()), strings.TrimPrefix(name, module+"/"), l.why)
			}
		}
	}
}

// TestWireWordsAreWrittenOnce holds that programs take the names of our headers from
// internal/wire. Tests and e2e spell them out: a change of them must show.
func TestWireWordsAreWrittenOnce(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || s.generated() || below(s.dir(), []string{"internal/wire", "e2e"}) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil && (strings.HasPrefix(text, "x-millrace-") || strings.HasPrefix(text, "x-gateway-")) {
					t.Errorf("%s:%d: %q; take it from internal/wire, or add it there", s.name, s.line(lit.Pos()), text)
				}
			}
			return true
		})
	}
}

// TestLayersBite holds that the rules above see what they are for.
func TestLayersBite(t *testing.T) {
	for _, tt := range []struct {
		dir, imported string
		want          bool
	}{
		{"internal/wire", module + "/internal/obs", true},
		{"internal/wire", "strings", false},
		{"engine/internal/api", module + "/engine/internal/vllm", true},
		{"engine/internal/api", module + "/engine/internal/backend", false},
		{"extproc/internal/pick", "google.golang.org/grpc", true},
		{"extproc/internal/picker", "google.golang.org/grpc", false},
		{"xds", module + "/e2e/rig", true},
		{"e2e/bench", module + "/e2e/rig", false},
	} {
		if _, got := crossed(tt.dir, tt.imported); got != tt.want {
			t.Errorf("%s imports %s: refused is %v, want %v", tt.dir, tt.imported, got, tt.want)
		}
	}
}
