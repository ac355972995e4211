package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// word is one that means several things here, or that strangers don't know.
type word struct {
	not string // lower case; words of a name with spaces between them
	say string // what to say instead
	// code is whether a name in tests may hold it.
	code bool
	// but are longer ones that are meant otherwise.
	but []string
}

const (
	sayReport  = "report, publish, subscribe or watch: who sends or follows state?"
	sayProbe   = "probe or scrape for engines; find, check, read for all else"
	sayForward = "forward or pass through"
	sayDesired = "desired state or observed state"
	sayEncode  = "encode, report, print or log: what is done?"
)

// words are the words of the field that this project says, by those it doesn't.
var words = []word{
	{not: "told", say: sayReport}, {not: "tell", say: sayReport}, {not: "tells", say: sayReport},
	{not: "hear", say: sayReport}, {not: "hears", say: sayReport}, {not: "heard", say: sayReport},
	{not: "look", say: sayProbe, but: []string{"look up", "look path"}}, {not: "looks", say: sayProbe}, {not: "looked", say: sayProbe}, {not: "looker", say: sayProbe},
	{not: "held", say: "the thing itself: reservation, in flight, queued, open, cached"},
	{not: "plain", say: "what it is without: endpoint (source: file), no TLS, text", but: []string{"plain text"}},
	{not: "go on", say: sayForward}, {not: "goes on", say: sayForward}, {not: "going on", say: sayForward},
	{not: "pass on", say: sayForward}, {not: "passes on", say: sayForward}, {not: "passed on", say: sayForward},
	{not: "left out", say: "ejected or excluded"}, {not: "leave out", say: "eject or exclude"},
	{not: "thought", say: "estimate or predicted"},
	{not: "wants", say: sayDesired, code: true}, {not: "truth", say: sayDesired, code: true},
	{not: "say", say: sayEncode, code: true}, {not: "says", say: sayEncode, code: true}, {not: "said", say: sayEncode, code: true},
}

// phrases are what comments and texts don't say.
var phrases = []struct {
	not *regexp.Regexp
	say string
}{
	{regexp.MustCompile(`(?i)\b(told|tells?|telling|hears?|heard|lets? \w+ know)\b`), sayReport},
	{regexp.MustCompile(`(?i)\b(looker|look(s|ed|ing)? at)\b`), sayProbe},
	{regexp.MustCompile(`(?i)\b(go(es|ing)? on|pass(es|ed)? on)\b`), sayForward + "; continue"},
	{regexp.MustCompile(`(?i)\bsomebody else's\b`), "endpoint, and its source"},
	{regexp.MustCompile(`(?i)\bthe truth\b`), sayDesired},
}

// Packages whose names, or whose comments and texts, still have other words. Take
// yours out when it is converted; both lists are to be empty.
var (
	namesToConvert = []string{}
	textsToConvert = []string{}
)

// nameWords splits a name: "lookupURLNow" is "lookup", "url", "now".
func nameWords(name string) []string {
	var all []string
	letters := []rune(name)
	begin := 0
	for i, r := range letters {
		upper := unicode.IsUpper(r) && i > 0 && (unicode.IsLower(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1]))
		if r == '_' || upper {
			all = append(all, strings.Trim(string(letters[begin:i]), "_"))
			begin = i
		}
	}
	all = append(all, strings.Trim(string(letters[begin:]), "_"))
	for i := range all {
		all[i] = strings.ToLower(all[i])
	}
	return all
}

// wrong returns the words that a name should not hold.
func wrong(name string, test bool) []word {
	text := " " + strings.Join(nameWords(name), " ") + " "
	var all []word
	for _, w := range words {
		rest := text
		for _, but := range w.but {
			rest = strings.ReplaceAll(rest, " "+but+" ", " ")
		}
		if strings.Contains(rest, " "+w.not+" ") && !(test && w.code) {
			all = append(all, w)
		}
	}
	return all
}

// declared calls f with every name that a file declares.
func (s source) declared(f func(*ast.Ident)) {
	names := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if id, ok := e.(*ast.Ident); ok {
				f(id)
			}
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			f(n.Name)
		case *ast.TypeSpec:
			f(n.Name)
		case *ast.Field:
			for _, id := range n.Names {
				f(id)
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				f(id)
			}
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				names(n.Lhs...)
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				names(n.Key, n.Value)
			}
		}
		return true
	})
}

// wordFaults returns the wrong words of a file's names, and of its comments and
// texts.
func (s source) wordFaults() (names, texts []fault) {
	s.declared(func(id *ast.Ident) {
		for _, w := range wrong(id.Name, s.test()) {
			names = append(names, fault{id.Pos(), fmt.Sprintf("%s: %q; say %s", id.Name, w.not, w.say)})
		}
	})
	check := func(at token.Pos, text string) {
		for _, p := range phrases {
			if found := p.not.FindString(text); found != "" {
				texts = append(texts, fault{at, fmt.Sprintf("%q; say %s", found, p.say)})
			}
		}
	}
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			check(c.Pos(), c.Text)
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && !s.test() {
			if text, err := strconv.Unquote(lit.Value); err == nil {
				check(lit.Pos(), text)
			}
		}
		return true
	})
	return names, texts
}

// TestWordsOfTheField holds names, comments and texts to the words that a stranger
// knows: one word, one meaning.
func TestWordsOfTheField(t *testing.T) {
	names, texts := map[string]int{}, map[string]int{} // faults by folder
	for _, s := range sources(t) {
		if s.generated() || s.name == "e2e/house/words_test.go" {
			continue
		}
		wrongNames, wrongTexts := s.wordFaults()
		names[s.dir()] += len(wrongNames)
		texts[s.dir()] += len(wrongTexts)
		if !slices.Contains(namesToConvert, s.dir()) {
			for _, f := range wrongNames {
				t.Errorf("%s:%d: %s", s.name, s.line(f.at), f.text)
			}
		}
		if !slices.Contains(textsToConvert, s.dir()) {
			for _, f := range wrongTexts {
				t.Errorf("%s:%d: %s", s.name, s.line(f.at), f.text)
			}
		}
	}
	for what, list := range map[string]struct {
		listed []string
		faults map[string]int
	}{"namesToConvert": {namesToConvert, names}, "textsToConvert": {textsToConvert, texts}} {
		sum := 0
		for _, dir := range slices.Sorted(maps.Keys(list.faults)) {
			sum += list.faults[dir]
		}
		for _, dir := range list.listed {
			if list.faults[dir] == 0 {
				t.Logf("%s: %s is converted: take it out", what, dir)
			}
		}
		t.Logf("%s: %d packages, %d faults", what, len(list.listed), sum)
	}
}

// TestDocumentsUseTheWordsOfTheField holds what users read, and the scripts.
func TestDocumentsUseTheWordsOfTheField(t *testing.T) {
	for _, name := range tracked(t) {
		document := slices.Contains([]string{".md", ".yaml", ".tmpl"}, path.Ext(name)) || name == "Makefile" || name == ".ci/run"
		if !document || slices.Contains(strings.Split(name, "/"), "testdata") {
			continue
		}
		n := 0
		for line := range strings.Lines(read(t, name)) {
			n++
			for _, p := range phrases {
				if found := p.not.FindString(line); found != "" {
					t.Errorf("%s:%d: %q; say %s", name, n, found, p.say)
				}
			}
		}
	}
}

// TestWordRulesBite holds that the rules above see what they are for.
func TestWordRulesBite(t *testing.T) {
	for name, want := range map[string]int{
		"told": 1, "TestIsToldOnce": 1, "lookAt": 1, "lookUp": 0, "lookup": 0, "LookPath": 0, "goOn": 1, "goOnce": 0, "plainText": 0,
		"plainFleet": 1, "held": 1, "withheld": 0, "wants": 1, "want": 0, "said": 1, "x_heard_y": 1, "URLTold": 1,
	} {
		if got := wrong(name, false); len(got) != want {
			t.Errorf("%s: %d wrong words, want %d", name, len(got), want)
		}
	}
	if got := wrong("wants", true); len(got) != 0 {
		t.Errorf("wants in a test: %v, want none", got)
	}
	s := parse(t, "p.go", `package p
// f tells g.
func f(heard int) { panic("x is passed on") }`)
	if names, texts := s.wordFaults(); len(names) != 1 || len(texts) != 2 {
		t.Errorf("wordFaults() = %v, %v; want one name and two texts", names, texts)
	}
}
