package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/nikolalohinski/gonja/v2/exec"
)

// toJSON is the tojson filter as chat templates expect it: Python's separators,
// nothing escaped for HTML.
func toJSON(_ *exec.Evaluator, in *exec.Value, params *exec.VarArgs) *exec.Value {
	if in.IsError() {
		return in
	}
	w := jsonWriter{}
	if v, ok := params.KwArgs["indent"]; ok && v.IsInteger() {
		w.indent = min(max(v.Integer(), 0), 16)
		w.indented = true
	}
	w.value(in.Val, 0)
	return exec.AsSafeValue(w.out.String())
}

// jsonWriter writes values as Python's json.dumps does.
type jsonWriter struct {
	out      strings.Builder
	indent   int
	indented bool
}

func (w *jsonWriter) value(v reflect.Value, depth int) {
	for v.IsValid() && (v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer) {
		v = v.Elem()
	}
	if !v.IsValid() {
		w.out.WriteString("null")
		return
	}
	switch v.Kind() {
	case reflect.Map:
		w.object(v, depth)
	case reflect.Slice, reflect.Array:
		w.array(v, depth)
	case reflect.Struct:
		w.structure(v, depth)
	default:
		w.scalar(v)
	}
}

func (w *jsonWriter) scalar(v reflect.Value) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if !v.CanInterface() || enc.Encode(v.Interface()) != nil {
		w.out.WriteString("null")
		return
	}
	w.out.Write(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
}

// structure writes the library's own values and dictionaries.
func (w *jsonWriter) structure(v reflect.Value, depth int) {
	switch x := v.Interface().(type) {
	case exec.Value:
		w.value(x.Val, depth)
	case exec.Dict:
		w.list("{", "}", len(x.Pairs), depth, func(i int) {
			w.value(x.Pairs[i].Key.Val, depth+1)
			w.out.WriteString(": ")
			w.value(x.Pairs[i].Value.Val, depth+1)
		})
	default:
		w.scalar(v)
	}
}

func (w *jsonWriter) array(v reflect.Value, depth int) {
	w.list("[", "]", v.Len(), depth, func(i int) { w.value(v.Index(i), depth+1) })
}

// objectOrder is the order in which the keys of tools are usually written;
// others follow by name. The body's own order is lost when it is decoded.
var objectOrder = []string{"type", "function", "name", "description", "parameters", "properties", "required", "items", "enum"}

func (w *jsonWriter) object(v reflect.Value, depth int) {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int {
		return strings.Compare(rank(fmt.Sprint(a)), rank(fmt.Sprint(b)))
	})
	w.list("{", "}", len(keys), depth, func(i int) {
		w.scalar(reflect.ValueOf(fmt.Sprint(keys[i])))
		w.out.WriteString(": ")
		w.value(v.MapIndex(keys[i]), depth+1)
	})
}

func rank(key string) string {
	if i := slices.Index(objectOrder, key); i >= 0 {
		return string(rune(i + 1))
	}
	return key
}

func (w *jsonWriter) list(open, shut string, n, depth int, element func(int)) {
	w.out.WriteString(open)
	for i := range n {
		if i > 0 {
			w.out.WriteString(",")
			if !w.indented {
				w.out.WriteString(" ")
			}
		}
		w.line(depth + 1)
		element(i)
	}
	if n > 0 {
		w.line(depth)
	}
	w.out.WriteString(shut)
}

func (w *jsonWriter) line(depth int) {
	if w.indented {
		w.out.WriteString("\n" + strings.Repeat(" ", w.indent*depth))
	}
}
