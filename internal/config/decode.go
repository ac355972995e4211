package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/trust"
)

// maxNodes bounds how many nodes of one object are read, aliases followed, so
// that a small file cannot stand for an endless one.
const maxNodes = 100_000

// decoder fills a struct from a YAML node by the struct's json tags, and
// collects what does not fit instead of stopping at it.
type decoder struct {
	// kind and name of the object, as the text has them.
	kind, name string
	// faults found, without the name of the file.
	faults []Fault
	// conflicts with other objects.
	conflicts []Fault
	// lines holds the line of each field that is set, by its path.
	lines map[string]int
	// written holds durations and sizes as they are written, by path, for faults.
	written map[string]string
	// nodes read so far.
	nodes int
}

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	d.faults = append(d.faults, Fault{Line: n.Line, Path: path, Text: secret.Hide(fmt.Sprintf(format, args...))})
}

// line returns the line of the path or, if that is not set, of what holds it.
func (d *decoder) line(path string) int {
	for path != "" {
		if l, ok := d.lines[path]; ok {
			return l
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return d.lines[""]
}

// value reads n into v, which keeps what it has where n says nothing.
func (d *decoder) value(path string, n *yaml.Node, v reflect.Value) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fault(n, path, "more than %d values; must be fewer", maxNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	if n.ShortTag() == "!!null" {
		return // as if it were not there: the default stays
	}
	if _, set := d.lines[path]; !set {
		d.lines[path] = n.Line
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(path, n, u)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.Map:
		d.texts(path, n, v)
	default:
		d.scalar(path, n, v)
	}
}

// object reads a mapping into a struct.
func (d *decoder) object(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		what := shown(n)
		if v.Type() == reflect.TypeFor[APIKey]() {
			what = "a value" // a key by mistake is not shown
		}
		d.fault(n, path, "%s; must be an object with fields", what)
		return
	}
	fields := fieldsOf(v.Type())
	d.eachKey(path, n, func(at string, key, value *yaml.Node) {
		index, ok := fields[key.Value]
		if !ok || key.Kind != yaml.ScalarNode {
			d.unknown(key, at, v.Type())
			return
		}
		if value.ShortTag() != "!!null" {
			d.lines[at] = key.Line // that of the value may be the next one
		}
		d.value(at, value, v.Field(index))
	})
}

// eachKey calls f for each key of a mapping, with the path of its value. One that is
// set again is a fault.
func (d *decoder) eachKey(path string, n *yaml.Node, f func(at string, key, value *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join2(path, key.Value)
		if first, ok := seen[key.Value]; ok {
			d.fault(key, at, "is already set in line %d; must be set once", first)
			continue
		}
		seen[key.Value] = key.Line
		f(at, key, value)
	}
}

func (d *decoder) unknown(key *yaml.Node, path string, t reflect.Type) {
	names := fieldNames(t)
	if near := nearest.Of(key.Value, names); near != "" {
		d.fault(key, path, "unknown field; did you mean %s?", near)
		return
	}
	d.fault(key, path, "unknown field; must be one of %s", strings.Join(names, ", "))
}

// list reads a sequence into a slice. Each entry starts from the defaults of
// its type. An empty list is none: Marshal leaves both out.
func (d *decoder) list(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, path, "%s; must be a list", shown(n))
		return
	}
	out := reflect.Zero(v.Type())
	for i, item := range n.Content {
		if item.ShortTag() == "!!null" {
			d.fault(item, path+"["+strconv.Itoa(i)+"]", "nothing; must be left out, or say something")
			continue
		}
		entry := reflect.New(v.Type().Elem())
		if e, ok := entry.Interface().(interface{ setDefaults() }); ok {
			e.setDefaults()
		}
		d.value(path+"["+strconv.Itoa(i)+"]", item, entry.Elem())
		out = reflect.Append(out, entry.Elem())
	}
	v.Set(out)
}

// texts reads a mapping of strings, such as labels. An empty one is none.
func (d *decoder) texts(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "%s; must be an object of strings", shown(n))
		return
	}
	out := make(map[string]string, len(n.Content)/2)
	d.eachKey(path, n, func(at string, key, value *yaml.Node) {
		if key.Kind != yaml.ScalarNode {
			d.fault(key, path, "%s; must be a string", shown(key))
			return
		}
		var text string
		d.value(at, value, reflect.ValueOf(&text).Elem())
		out[key.Value] = text
	})
	if len(out) > 0 {
		v.Set(reflect.ValueOf(out))
	}
}

func (d *decoder) text(path string, n *yaml.Node, u encoding.TextUnmarshaler) {
	if n.Kind != yaml.ScalarNode {
		d.fault(n, path, "%s; must be a single value", shown(n))
		return
	}
	text := n.Value
	if _, size := u.(*Bytes); size && n.ShortTag() == "!!int" {
		var number int64 // may be hexadecimal
		if err := n.Load(&number); err == nil {
			text = strconv.FormatInt(number, 10)
		}
	} else if n.ShortTag() != "!!str" {
		text = "" // "0" without quotes is a number to an API server, and not a duration
	}
	if err := u.UnmarshalText([]byte(text)); err != nil {
		d.fault(n, path, "%s; %v", shown(n), err)
	}
	if d.written == nil {
		d.written = map[string]string{}
	}
	d.written[path] = text
}

// scalar reads a string, number or boolean.
func (d *decoder) scalar(path string, n *yaml.Node, v reflect.Value) {
	want, tags := "", ""
	switch v.Kind() {
	case reflect.String:
		want, tags = "a string (in quotes)", "!!str"
	case reflect.Bool:
		want, tags = "true or false", "!!bool"
	case reflect.Int:
		want, tags = "a whole number", "!!int !!float"
	case reflect.Float32:
		want, tags = "a number", "!!int !!float"
	default:
		panic("config: no reading of " + v.Type().String()) // a field of our own schema has a new type
	}
	if n.Kind != yaml.ScalarNode || !strings.Contains(tags, n.ShortTag()) {
		d.fault(n, path, "%s; must be %s", shown(n), want)
		return
	}
	if f, err := trust.Number(n.Value, -1<<53, 1<<53); v.Kind() == reflect.Int && err == nil && n.ShortTag() == "!!float" && f == math.Trunc(f) {
		v.SetInt(int64(f)) // 2.0 is a whole number to an API server
		return
	}
	if err := n.Load(v.Addr().Interface()); err != nil {
		d.fault(n, path, "%s; must be %s", shown(n), want)
	}
}

// shown returns the node as it is shown in a fault.
func shown(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	const longest = 80
	s := n.Value
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	if n.ShortTag() == "!!str" || !strconv.CanBackquote(s) {
		return strconv.Quote(s)
	}
	return s
}

// notRead is the json name of a field that no file sets.
const notRead = "-"

// fieldsOf returns the index of each field of a struct, by json name.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if name := jsonName(t.Field(i)); name != notRead {
			fields[name] = i
		}
	}
	return fields
}

// fieldNames returns the json names of a struct's fields in their order.
func fieldNames(t reflect.Type) []string {
	names := make([]string, 0, t.NumField())
	for i := range t.NumField() {
		if name := jsonName(t.Field(i)); name != notRead {
			names = append(names, name)
		}
	}
	return names
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func join2(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
