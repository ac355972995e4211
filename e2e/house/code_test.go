package house

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// programs are the top folders that are a program each.
var programs = []string{"extproc", "xds", "nodeagent", "engine"}

func TestProgramsShareOnlyContracts(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			rest, ours := strings.CutPrefix(name, module+"/")
			owner, _, _ := strings.Cut(rest, "/")
			here, _, _ := strings.Cut(s.name, "/")
			if ours && slices.Contains(programs, owner) && owner != here && !strings.HasSuffix(rest, "pb") {
				t.Errorf("%s:%d: imports %s; of another program import its *pb package only", s.name, s.line(spec.Pos()), rest)
			}
		}
	}
}

// fault is something that code may not do.
type fault struct {
	at   token.Pos
	text string
}

// calls reports every call that judge objects to, with the function it is in.
func calls(t *testing.T, take func(source) bool, judge func(s source, in *ast.FuncDecl, name string, call *ast.CallExpr) string) {
	t.Helper()
	for _, s := range sources(t) {
		if s.generated() || !take(s) {
			continue
		}
		for _, f := range s.faults(judge) {
			t.Errorf("%s:%d: %s", s.name, s.line(f.at), f.text)
		}
	}
}

func (s source) faults(judge func(s source, in *ast.FuncDecl, name string, call *ast.CallExpr) string) []fault {
	var all []fault
	for _, decl := range s.file.Decls {
		in, _ := decl.(*ast.FuncDecl) // nil for the value of a variable
		ast.Inspect(decl, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if text := judge(s, in, called(call), call); text != "" {
				all = append(all, fault{call.Pos(), text})
			}
			return true
		})
	}
	return all
}

// called returns "f" or "x.f", "" for what has no such name.
func called(call *ast.CallExpr) string {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		if x, ok := fun.X.(*ast.Ident); ok {
			return x.Name + "." + fun.Sel.Name
		}
	}
	return ""
}

func programCode(s source) bool { return !s.test() }
func testCode(s source) bool    { return s.test() }
func allCode(source) bool       { return true }

func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Recv == nil && f.Name.Name == "init" && !s.generated() {
				t.Errorf("%s:%d: init; wire it up in run", s.name, s.line(f.Pos()))
			}
		}
	}
}

func TestPanicsSayWhy(t *testing.T) {
	calls(t, programCode, func(s source, _ *ast.FuncDecl, name string, call *ast.CallExpr) string {
		if name == "panic" && !s.commented(s.line(call.Pos())) {
			return "panic; return an error, or say in a comment on the line why only a bug of ours gets here"
		}
		return ""
	})
}

// commented is whether a comment ends on the line or the one before.
func (s source) commented(line int) bool {
	for _, c := range s.file.Comments {
		if end := s.line(c.End()); end == line || end == line-1 {
			return true
		}
	}
	return false
}

func TestOnlyMainExits(t *testing.T) {
	calls(t, programCode, func(s source, in *ast.FuncDecl, name string, _ *ast.CallExpr) string {
		main := s.file.Name.Name == "main" && in != nil && in.Recv == nil && in.Name.Name == "main"
		if slices.Contains([]string{"os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln"}, name) && !main {
			return name + "; return an error: only main ends the program"
		}
		return ""
	})
}

func TestTestsDontWaitOrSkip(t *testing.T) {
	calls(t, testCode, func(s source, _ *ast.FuncDecl, name string, _ *ast.CallExpr) string {
		method := name[strings.LastIndex(name, ".")+1:]
		switch {
		case name == "time.Sleep" && !s.imports("testing/synctest"):
			return "time.Sleep; wait for what must happen, or use testing/synctest"
		case slices.Contains([]string{"t.Skip", "t.Skipf", "t.SkipNow", "b.Skip", "tb.Skip"}, name):
			return method + "; a test that doesn't run proves nothing"
		}
		return ""
	})
}

func (s source) imports(name string) bool {
	return slices.ContainsFunc(s.file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(name) })
}

// TestOutsideHasOneDoor keeps the checks in internal/trust that let NaN pass elsewhere. gateways are where
// Envoy's own messages are checked that we have made.
func TestOutsideHasOneDoor(t *testing.T) {
	gateways := []string{"internal/trust/", "envoy/", "xds/internal/translate/", "e2e/"}
	ours := func(s source) bool {
		return !s.test() && !slices.ContainsFunc(gateways, func(folder string) bool { return strings.HasPrefix(s.name, folder) })
	}
	calls(t, ours, func(_ source, _ *ast.FuncDecl, name string, call *ast.CallExpr) string {
		fun, ok := call.Fun.(*ast.SelectorExpr)
		switch {
		case name == "strconv.ParseFloat" && len(call.Args) == 2:
			return "strconv.ParseFloat; it takes NaN and infinities: use trust.Number"
		case ok && (fun.Sel.Name == "ValidateAll" || fun.Sel.Name == "Validate") && len(call.Args) == 0:
			return fun.Sel.Name + "; generated rules let NaN pass: use trust.Message"
		}
		return ""
	})
}

// TestNobodyWaitsForAFile keeps what somebody else names as a file behind internal/regular: a pipe
// there would block whoever opens it. What a program has made itself is no
// exception: somebody may have put a pipe in its place. own are where files are the kernel's.
func TestNobodyWaitsForAFile(t *testing.T) {
	own := []string{
		"internal/regular/", "internal/cgroup/", "e2e/", "nodeagent/internal/host/", "engine/internal/llamacpp/address.go", "extproc/source.go",
		"internal/doctor/machine.go", "internal/proc/",
	}
	ours := func(s source) bool {
		return !s.test() && !slices.ContainsFunc(own, func(folder string) bool { return strings.HasPrefix(s.name, folder) })
	}
	calls(t, ours, func(_ source, _ *ast.FuncDecl, name string, _ *ast.CallExpr) string {
		if slices.Contains([]string{"os.ReadFile", "os.Open", "os.OpenFile", "os.Create", "os.WriteFile", "tls.LoadX509KeyPair"}, name) {
			return name + "; it waits for a pipe or a mount that has gone: use internal/regular, or keypair.Read"
		}
		return ""
	})
}

var shy = regexp.MustCompile(`(?i)^(failed to|unable to|could not|couldn't|cannot|can not|error\b)`)

func TestErrorsComeToThePoint(t *testing.T) {
	calls(t, allCode, func(_ source, _ *ast.FuncDecl, name string, call *ast.CallExpr) string {
		if name != "fmt.Errorf" && name != "errors.New" || len(call.Args) == 0 {
			return ""
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		if !ok {
			return ""
		}
		text, err := strconv.Unquote(lit.Value)
		if err == nil && shy.MatchString(text) {
			return "error opens with " + strconv.Quote(shy.FindString(text)) + "; say what you were at: \"probe engine a: %w\""
		}
		return ""
	})
}

func TestFunctionsAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated() || s.test() {
			continue
		}
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n > 100 {
				t.Errorf("%s:%d: %s has %d lines; must be at most 100", s.name, s.line(f.Pos()), f.Name.Name, n)
			}
			if n := depth(f.Body, 0); n > 4 {
				t.Errorf("%s:%d: %s nests %d levels; must be at most 4", s.name, s.line(f.Pos()), f.Name.Name, n)
			}
		}
	}
}

// depth is how many statements with a block of their own lie in each other below
// n, which itself lies in outer ones. "else if" and the body of a function
// literal don't count as deeper than what they belong to.
func depth(n ast.Node, outer int) int {
	deepest := outer
	ast.Inspect(n, func(c ast.Node) bool {
		if c == n || c == nil {
			return true
		}
		var blocks []ast.Node
		switch c := c.(type) {
		case *ast.IfStmt:
			blocks = branches(c)
		case *ast.ForStmt:
			blocks = []ast.Node{c.Body}
		case *ast.RangeStmt:
			blocks = []ast.Node{c.Body}
		case *ast.SwitchStmt:
			blocks = []ast.Node{c.Body}
		case *ast.TypeSwitchStmt:
			blocks = []ast.Node{c.Body}
		case *ast.SelectStmt:
			blocks = []ast.Node{c.Body}
		default:
			return true
		}
		for _, b := range blocks {
			deepest = max(deepest, depth(b, outer+1))
		}
		return false
	})
	return deepest
}

// branches returns the blocks of an if and all its else.
func branches(s *ast.IfStmt) []ast.Node {
	blocks := []ast.Node{s.Body}
	switch e := s.Else.(type) {
	case *ast.IfStmt:
		blocks = append(blocks, branches(e)...)
	case *ast.BlockStmt:
		blocks = append(blocks, e)
	}
	return blocks
}

func TestDepth(t *testing.T) {
	s := parse(t, "p.go", `package p
func f() {
	if a {
	} else if b {
		for {
			switch {
			case c:
				g(func() { select {} })
			}
		}
	}
}`)
	f, ok := s.file.Decls[0].(*ast.FuncDecl)
	if !ok {
		t.Fatal("not a function")
	}
	if got := depth(f.Body, 0); got != 4 {
		t.Errorf("depth() = %d, want 4", got)
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated() || s.test() || s.file.Name.Name == "main" {
			continue
		}
		for _, decl := range s.file.Decls {
			for _, name := range s.bare(decl) {
				t.Errorf("%s:%d: %s has no comment that starts with its name", s.name, s.line(decl.Pos()), name)
			}
		}
	}
}

// bare returns the exported names of a declaration that have no comment of
// their own, nor one of the group they are in.
func (s source) bare(decl ast.Decl) []string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && !unexportedReceiver(d) && !starts(d.Doc, d.Name.Name) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		var names []string
		for _, spec := range d.Specs {
			names = append(names, bareSpec(d, spec)...)
		}
		return names
	}
	return nil
}

func bareSpec(d *ast.GenDecl, spec ast.Spec) []string {
	var names []string
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && !starts(d.Doc, spec.Name.Name) && !starts(spec.Doc, spec.Name.Name) {
			names = append(names, spec.Name.Name)
		}
	case *ast.ValueSpec:
		for _, n := range spec.Names {
			if n.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// starts is whether the comment begins with the name, after an article or none.
func starts(doc *ast.CommentGroup, name string) bool {
	words := strings.Fields(doc.Text())
	if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
		words = words[1:]
	}
	return len(words) > 0 && strings.TrimRight(words[0], ",.:") == name
}

func unexportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return false
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return !x.IsExported()
		default:
			return true
		}
	}
}

// TestRulesBite holds that the rules above see what they are for.
func TestRulesBite(t *testing.T) {
	s := parse(t, "p.go", `package p
func f() {
	panic("x")
	panic("y") // why
}`)
	if s.commented(3) || !s.commented(4) {
		t.Error("commented: wrong about the panics")
	}
	for text, want := range map[string]bool{"failed to x": true, "Unable to x": true, "error x": true, "errors are x": false, "probe x: %w": false} {
		if shy.MatchString(text) != want {
			t.Errorf("%q: taken for shy: %v", text, !want)
		}
	}
	for text, want := range map[string]bool{"run: build ## x": true, "a-b:": true, "X := y": false, "\tfoo: bar": false, ".PHONY: x": false} {
		if target.MatchString(text) != want {
			t.Errorf("%q: taken for a target: %v", text, !want)
		}
	}
	if got := lines("a\nb\n"); got != 2 {
		t.Errorf("lines() = %d, want 2", got)
	}
}
