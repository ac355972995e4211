package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/trust"
)

// FromJSON decodes a value as Python's json.loads does: objects keep the order of
// their keys, integers and floats stay apart.
func FromJSON(raw []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err = decode(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("json: more than one value")
	}
	return v, nil
}

func decode(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("json: %w: more than %d levels", ErrLimit, maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		return number(string(t))
	case json.Delim:
		if t == '[' {
			return decodeList(d, depth)
		}
		return decodeDict(d, depth)
	}
	return t, nil // nil, bool, string
}

func decodeList(d *json.Decoder, depth int) (any, error) {
	out := &list{}
	for d.More() {
		v, err := decode(d, depth+1)
		if err != nil {
			return nil, err
		}
		out.items = append(out.items, v)
	}
	_, err := d.Token()
	return out, err
}

func decodeDict(d *json.Decoder, depth int) (any, error) {
	out := NewDict(4)
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := decode(d, depth+1)
		if err != nil {
			return nil, err
		}
		out.set(k, v)
	}
	_, err := d.Token()
	return out, err
}

func number(s string) (any, error) {
	if !strings.ContainsAny(s, ".eE") {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
		n, ok := new(big.Int).SetString(s, 10)
		if !ok || len(s) > maxDigits {
			return nil, fmt.Errorf("json: %w: integer of %d digits", ErrUnsupported, len(s))
		}
		return n, nil
	}
	f, err := trust.Number(s, -math.MaxFloat64, math.MaxFloat64)
	if err != nil {
		return nil, fmt.Errorf("json: %w", err)
	}
	return f, nil
}

// NewList makes a list of values.
func NewList(items ...any) any { return &list{items} }

// jsonWriter writes values as Python's json.dumps does.
type jsonWriter struct {
	e           *exec
	out         []byte
	ascii, sort bool
	indented    bool
	indent      string
	comma       string
	colon       string
}

// toJSON is the filter as transformers has it.
func toJSON(e *exec, v any, a *args) any {
	b := e.bind(a, "tojson", "ensure_ascii=", "indent=", "separators=", "sort_keys=")
	w := &jsonWriter{e: e, ascii: e.isTrue(given(b[0], false)), sort: e.isTrue(given(b[3], false)), comma: ", ", colon: ": "}
	w.indentation(given(b[1], nil))
	if s := given(b[2], nil); s != nil {
		parts := e.collect(s)
		if len(parts) != 2 {
			throw(errValue, "tojson with %d separators", len(parts))
		}
		w.comma, w.colon = e.mustText(parts[0]), e.mustText(parts[1])
	}
	w.value(v, 0)
	e.spend(len(w.out))
	return string(w.out)
}

func (w *jsonWriter) indentation(v any) {
	if v == nil {
		return
	}
	w.indented, w.comma = true, ","
	if s, ok := text(v); ok {
		w.indent = s
		return
	}
	switch v.(type) {
	case bool, int64:
		n, _ := index(v)
		if n > 1000 {
			throw(ErrUnsupported, "tojson with an indent of %d", n)
		}
		w.indent = strings.Repeat(" ", int(max(n, 0)))
	case *undefined, float64:
		throw(ErrUnsupported, "tojson with an indent of type %s", typeName(v))
	default:
		throw(errType, "tojson with an indent of type %s", typeName(v))
	}
}

// IsList reports whether a value is a list that NewList or FromJSON made.
func IsList(v any) bool {
	_, ok := v.(*list)
	return ok
}

// Items returns what is in a list that NewList or FromJSON made; of other values nothing.
func Items(v any) iter.Seq[any] {
	l, ok := v.(*list)
	if !ok {
		return func(func(any) bool) {}
	}
	return slices.Values(l.items)
}
