package token

import (
	"errors"
	"maps"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/exec"
)

// This file mends what of Jinja chat templates need and the library lacks or
// does differently.

// environment is Jinja's, with what transformers and llama.cpp add to it.
func environment(llama bool) *exec.Environment {
	filters := exec.NewFilterSet(map[string]exec.FilterFunction{})
	filters.Update(builtins.Filters)
	strip := stripper(llama)
	_ = filters.Replace("tojson", toJSON) // they are there: no error
	_ = filters.Replace("trim", func(_ *exec.Evaluator, in *exec.Value, _ *exec.VarArgs) *exec.Value {
		return exec.AsValue(strings.TrimFunc(in.String(), strip))
	})
	globals := exec.EmptyContext().Update(builtins.GlobalFunctions).Update(exec.NewContext(map[string]any{
		"raise_exception": func(message string) (string, error) { return "", errors.New(message) },
		"strftime_now":    func(format string) string { return strftime(time.Now(), format) },
		"range":           span,
	}))
	return &exec.Environment{
		Context: globals, Filters: filters, Tests: builtins.Tests,
		ControlStructures: builtins.ControlStructures, Methods: methods(strip),
	}
}

// maxSpan bounds range(), which a template calls with what it likes.
const maxSpan = 1 << 16

// span is range([start,] stop[, step]).
func span(_ *exec.Evaluator, args *exec.VarArgs) (list, error) {
	var n [3]int
	if len(args.Args) < 1 || len(args.Args) > len(n) {
		return nil, errors.New("range: 1 to 3 numbers are needed")
	}
	for i, a := range args.Args {
		n[i] = a.Integer()
	}
	start, stop, step := n[0], n[1], n[2]
	if len(args.Args) == 1 {
		start, stop = 0, n[0]
	}
	if len(args.Args) < 3 {
		step = 1
	}
	var out list
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(out) == maxSpan {
			return nil, errors.New("range: too long")
		}
		out = append(out, i)
	}
	return out, nil
}

// list is a list whose first element can also be had as [-len]: the library's
// own lists of one element have no [-1].
type list []any

// GetItem implements exec.ItemGetter.
func (l list) GetItem(key any) (*exec.Value, bool) {
	i, ok := key.(int)
	if i < 0 {
		i += len(l)
	}
	if !ok || i < 0 || i >= len(l) {
		return exec.AsValue(nil), false
	}
	return exec.ToValue(reflect.ValueOf(l[i])), true
}

// stripper says what white space is: llama.cpp knows only ASCII's.
func stripper(llama bool) func(rune) bool {
	if !llama {
		return unicode.IsSpace
	}
	return func(r rune) bool { return strings.ContainsRune(blanks, r) }
}

type stringMethod = exec.Method[string]

// methods are those of Python's values, with the strings' mended.
func methods(strip func(rune) bool) exec.Methods {
	out := map[string]stringMethod{}
	for _, name := range []string{
		"capitalize", "count", "endswith", "find", "format", "isalnum", "isalpha", "isdigit", "islower", "isnumeric", "isspace",
		"isupper", "join", "lower", "partition", "removeprefix", "removesuffix", "rfind", "rpartition", "splitlines",
		"startswith", "title", "upper",
	} {
		if m, ok := builtins.Methods.Str.Get(name); ok {
			out[name] = m
		}
	}
	maps.Copy(out, map[string]stringMethod{
		"strip": trimmer(strip, strings.TrimFunc), "lstrip": trimmer(strip, strings.TrimLeftFunc),
		"rstrip": trimmer(strip, strings.TrimRightFunc), "replace": replace, "split": split, "rsplit": rsplit,
	})
	all := builtins.Methods
	all.Str = exec.NewMethodSet(out)
	return all
}

// trimmer is strip() and its like: without an argument they take white space.
func trimmer(blank func(rune) bool, trim func(string, func(rune) bool) string) stringMethod {
	return func(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
		if len(args.Args) == 0 {
			return trim(self, blank), nil
		}
		set := args.Args[0].String()
		return trim(self, func(r rune) bool { return strings.ContainsRune(set, r) }), nil
	}
}

// replace is replace(old, new[, count]).
func replace(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
	if len(args.Args) < 2 {
		return nil, errors.New("replace: old and new are needed")
	}
	n := -1
	if len(args.Args) > 2 {
		n = args.Args[2].Integer()
	}
	return strings.Replace(self, args.Args[0].String(), args.Args[1].String(), n), nil
}

// split is split([separator[, limit]]).
func split(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
	if len(args.Args) == 0 || args.Args[0].String() == "" {
		return listOf(strings.Fields(self)), nil
	}
	n := -1
	if len(args.Args) > 1 && args.Args[1].Integer() >= 0 {
		n = args.Args[1].Integer() + 1
	}
	return listOf(strings.SplitN(self, args.Args[0].String(), n)), nil
}

// rsplit is rsplit(separator, limit), which cuts from the right.
func rsplit(self string, value *exec.Value, args *exec.VarArgs) (any, error) {
	if len(args.Args) < 2 || args.Args[0].String() == "" {
		return split(self, value, args)
	}
	separator, out := args.Args[0].String(), []string(nil)
	for n := args.Args[1].Integer(); n != 0; n-- {
		i := strings.LastIndex(self, separator)
		if i < 0 {
			break
		}
		out = append([]string{self[i+len(separator):]}, out...)
		self = self[:i]
	}
	return listOf(append([]string{self}, out...)), nil
}

func listOf(all []string) list {
	out := make(list, len(all))
	for i, s := range all {
		out[i] = s
	}
	return out
}

var (
	generation    = regexp.MustCompile(`(\{%[-+]?\s*)generation(\s*[-+]?%\})`)
	endGeneration = regexp.MustCompile(`(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})`)
)

// withoutTraining replaces the tags that mark the assistant's words for
// training.
func withoutTraining(source string) string {
	source = generation.ReplaceAllString(source, "${1}if true$2")
	return endGeneration.ReplaceAllString(source, "${1}endif$2")
}

// strftime formats the directives that templates use for dates.
func strftime(now time.Time, format string) string {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			out.WriteByte(format[i])
			continue
		}
		i++
		layout, ok := strftimeLayouts[format[i]]
		if !ok {
			out.WriteString(format[i-1 : i+1])
			continue
		}
		out.WriteString(now.Format(layout))
	}
	return out.String()
}

var strftimeLayouts = map[byte]string{
	'd': "02", 'm': "01", 'Y': "2006", 'y': "06", 'b': "Jan", 'B': "January", 'H': "15", 'M': "04",
	'S': "05", 'A': "Monday", 'a': "Mon", 'p': "PM", 'I': "03", 'j': "002", 'Z': "MST", 'z': "-0700",
	'F': "2006-01-02", 'T': "15:04:05", 'e': "_2", 'n': "\n", 't': "\t",
}
