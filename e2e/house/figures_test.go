package house

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// figures are the numbers by which we compare with well-kept projects, of program
// code or of tests; generated code does not count.
type figures struct {
	functions []int // lines of each
	files     []int // lines of each
	long      int   // functions over 100 lines
	deep      int   // functions that nest deeper than 4
	packages  map[string]bool
}

// share returns the value below which p of all lie, 0 to 1; 0 of none.
func share(all []int, p float64) int {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[int(p*float64(len(all)-1)+0.5)]
}

func (f figures) String() string {
	return fmt.Sprintf("%d functions: median %d lines, 95th percentile %d, over 100 lines %d, deeper than 4 %d; %d files: median %d lines, 95th percentile %d; %d packages",
		len(f.functions), share(f.functions, 0.5), share(f.functions, 0.95), f.long, f.deep,
		len(f.files), share(f.files, 0.5), share(f.files, 0.95), len(f.packages))
}

func (f *figures) add(s source, text string) {
	f.files = append(f.files, lines(text))
	f.packages[s.dir()] = true
	for _, decl := range s.file.Decls {
		d, ok := decl.(*ast.FuncDecl)
		if !ok || d.Body == nil {
			continue
		}
		n := s.line(d.End()) - s.line(d.Pos()) + 1
		f.functions = append(f.functions, n)
		if n > 100 {
			f.long++
		}
		if depth(d.Body, 0) > 4 {
			f.deep++
		}
	}
}

// TestFigures holds program code to what the models of the field have, and logs
// where we are: go test -v -run TestFigures ./e2e/house.
func TestFigures(t *testing.T) {
	code, tests := figures{packages: map[string]bool{}}, figures{packages: map[string]bool{}}
	for _, s := range sources(t) {
		switch {
		case s.generated():
		case s.test():
			tests.add(s, read(t, s.name))
		default:
			code.add(s, read(t, s.name))
		}
	}
	t.Logf("programs: %v", code)
	t.Logf("tests: %v", tests)
	for _, tt := range []struct {
		what      string
		got, most int
	}{
		{"median lines of a function", share(code.functions, 0.5), 12},
		{"95th percentile of a function's lines", share(code.functions, 0.95), 50},
		{"functions over 100 lines", code.long, 0},
		{"functions that nest deeper than 4", code.deep, 0},
		{"median lines of a file", share(code.files, 0.5), 140},
		{"95th percentile of a file's lines", share(code.files, 0.95), 600},
	} {
		if tt.got > tt.most {
			t.Errorf("%s: %d; must be at most %d", tt.what, tt.got, tt.most)
		}
	}
}

func TestFiguresCount(t *testing.T) {
	text := "package p\nfunc f() {}\nfunc g() {\n" + strings.Repeat("\tx()\n", 120) + "}\n"
	f := figures{packages: map[string]bool{}}
	f.add(parse(t, "p.go", text), text)
	if len(f.functions) != 2 || f.long != 1 || f.files[0] != 124 {
		t.Errorf("figures = %v", f)
	}
	if got := []int{share([]int{3, 1, 2}, 0.5), share([]int{1, 2, 3, 4, 100}, 0.95), share(nil, 0.5)}; !slices.Equal(got, []int{2, 100, 0}) {
		t.Errorf("shares = %v, want 2, 100, 0", got)
	}
}
