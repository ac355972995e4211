package harmony

import (
	"errors"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// namespace declares functions as types of TypeScript, as openai/harmony does.
func namespace(tools []Tool) (string, error) {
	b := new(bound)
	lines := []string{"## functions\n", "namespace functions {\n"}
	for i := range tools {
		t := &tools[i]
		for line := range eachLine(t.Description) {
			lines = append(lines, "// "+line)
		}
		parameters := "() => any;\n"
		if t.Parameters != nil {
			parameters = "(_: " + b.typeOf(t.Parameters, "") + ") => any;\n"
		}
		lines = append(lines, "type "+t.Name+" = "+parameters)
	}
	if b.over() {
		return "", ErrLarge
	}
	return strings.Join(append(lines, "} // namespace functions"), "\n"), nil
}

// mostWritten bounds the types of a request's tools, in bytes, as often as they are copied into
// what holds them: indented, deep schemas are far larger than they come.
const mostWritten = 8 << 20

// ErrLarge is returned for a conversation with tools whose types are too large.
var ErrLarge = errors.New("harmony: too large types of tools")

// bound keeps how much of types has been written.
type bound struct{ written int }

func (b *bound) over() bool { return b.written > mostWritten }

// writer writes a type as far as a bound allows.
type writer struct {
	strings.Builder
	*bound
}

// WriteString adds s, unless the bound is reached.
func (w *writer) WriteString(s string) {
	if w.written += len(s); !w.over() {
		w.Builder.WriteString(s)
	}
}

// eachLine yields lines without their ends.
func eachLine(text string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text) {
			if cut, ok := strings.CutSuffix(line, "\n"); ok {
				line = strings.TrimSuffix(cut, "\r")
			}
			if !yield(line) {
				return
			}
		}
	}
}

// schema is a JSON schema, or what stands in its place.
type schema struct{ *jinja.Dict }

func schemaOf(v any) schema {
	d, ok := v.(*jinja.Dict)
	if !ok {
		d = jinja.NewDict(0)
	}
	return schema{d}
}

func (s schema) has(key string) bool { _, ok := s.Get(key); return ok }

// text is a field that is a text.
func (s schema) text(key string) (string, bool) {
	v, _ := s.Get(key)
	text, ok := v.(string)
	return text, ok
}

// list is a field that is a list.
func (s schema) list(key string) ([]any, bool) {
	v, _ := s.Get(key)
	if !jinja.IsList(v) {
		return nil, false
	}
	return slices.Collect(jinja.Items(v)), true
}

func (s schema) isEnum() bool {
	all, ok := s.list("enum")
	return ok && len(all) > 0
}

// fallback is the text of a default value. Of an enumeration a text has no quotes; bare is
// whether it is known as one here.
func (s schema) fallback(bare bool) (string, bool) {
	v, ok := s.Get("default")
	if !ok {
		return "", false
	}
	switch text, is := v.(string); {
	case is && !s.isEnum():
		return `default: "` + text + `"`, true
	case is && bare:
		return "default: " + text, true
	}
	return "default: " + compact(v), true
}

// typeOf is the type of what a schema describes.
func (b *bound) typeOf(v any, indent string) string {
	if b.over() {
		return ""
	}
	out := b.declared(v, indent)
	b.written += len(out)
	return out
}

func (b *bound) declared(v any, indent string) string {
	s := schemaOf(v)
	if variants, ok := s.list("oneOf"); ok {
		return b.union(variants, indent)
	}
	if kinds, ok := s.list("type"); ok {
		if names := texts(kinds); len(names) > 0 {
			for i, n := range names {
				if n == "integer" {
					names[i] = "number"
				}
			}
			return strings.Join(names, " | ")
		}
	}
	kind, _ := s.text("type")
	switch kind {
	case "object":
		return b.object(s, indent)
	case "string":
		return s.enumeration()
	case "number", "integer":
		return "number"
	case "boolean":
		return kind
	case "array":
		if items, ok := s.Get("items"); ok {
			return b.typeOf(items, indent) + "[]"
		}
		return "Array<any>"
	}
	return "any"
}

func texts(all []any) (out []string) {
	for _, v := range all {
		if text, ok := v.(string); ok {
			out = append(out, text)
		}
	}
	return out
}

func (s schema) enumeration() string {
	all, _ := s.list("enum")
	names := texts(all)
	if len(names) == 0 {
		return "string"
	}
	return `"` + strings.Join(names, `" | "`) + `"`
}

// nullable is a type that may be null as its schema says.
func (s schema) nullable(of string) string {
	if v, _ := s.Get("nullable"); v == any(true) && !strings.Contains(of, "null") {
		return of + " | null"
	}
	return of
}

// union is the type of one of several that stands by itself.
func (b *bound) union(variants []any, indent string) string {
	out := writer{bound: b}
	for _, v := range variants {
		if out.over() {
			break
		}
		s := schemaOf(v)
		out.WriteString("\n" + indent + " | " + s.nullable(out.typeOf(v, indent+"   ")))
		var comments []string
		if text, ok := s.text("description"); ok {
			comments = append(comments, text)
		}
		if text, ok := s.fallback(false); ok {
			comments = append(comments, text)
		}
		out.WriteString(comment(comments))
	}
	return out.String()
}

func comment(texts []string) string {
	if len(texts) == 0 {
		return ""
	}
	return " // " + strings.Join(texts, " ")
}

// object is the type of an object, its properties in their order.
func (b *bound) object(s schema, indent string) string {
	out := writer{bound: b}
	if text, ok := s.text("description"); ok {
		out.WriteString(indent + "// " + text + "\n")
	}
	out.WriteString("{\n")
	properties, _ := s.Get("properties")
	names, _ := s.list("required")
	required := map[string]bool{}
	for _, name := range texts(names) {
		required[name] = true
	}
	for name, v := range schemaOf(properties).All() {
		if out.over() {
			break
		}
		optional := "?"
		if required[name] {
			optional = ""
		}
		schemaOf(v).property(&out, name+optional, indent, v)
	}
	return out.String() + indent + "}"
}

// property is a field of an object, with what is said of it above.
func (s schema) property(out *writer, name, indent string, v any) {
	if text, ok := s.text("title"); ok {
		out.WriteString(indent + "// " + text + "\n" + indent + "//\n")
	}
	if text, ok := s.text("description"); ok && !s.has("oneOf") {
		out.WriteString(indent + "// " + text + "\n")
	}
	if examples, _ := s.list("examples"); len(examples) > 0 {
		out.WriteString(indent + "// Examples:\n")
		for _, text := range texts(examples) {
			if out.over() {
				break
			}
			out.WriteString(indent + "// - \"" + text + "\"\n")
		}
	}
	if variants, ok := s.list("oneOf"); ok {
		s.choice(out, name, indent, variants)
		return
	}
	out.WriteString(indent + name + ": " + s.nullable(out.typeOf(v, indent+"    ")) + ",")
	if text, ok := s.fallback(true); ok && !s.has("oneOf") {
		out.WriteString(" // " + text)
	}
	out.WriteString("\n")
}

// choice is a property that is one of several. What is said of it is not said again of the
// first of them.
func (s schema) choice(out *writer, name, indent string, variants []any) {
	about, has := s.text("description")
	above := has
	if len(variants) > 0 && has {
		first, ok := schemaOf(variants[0]).text("description")
		above = !ok || first != about
	}
	if above {
		out.WriteString(indent + "// " + about + "\n")
	}
	if text, ok := s.fallback(true); ok {
		out.WriteString(indent + "// " + text + "\n")
	}
	out.WriteString(indent + name + ":\n")
	for i, v := range variants {
		if out.over() {
			break
		}
		one := schemaOf(v)
		out.WriteString(indent + " | " + one.nullable(out.typeOf(v, indent+"   ")))
		var comments []string
		if text, ok := one.text("description"); ok && !(i == 0 && above) && !(has && text == about) {
			comments = append(comments, text)
		}
		if text, ok := one.fallback(true); ok {
			comments = append(comments, text)
		}
		out.WriteString(comment(comments) + "\n")
	}
	out.WriteString(indent + ",\n")
}
