package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"maps"
	"slices"
	"strconv"
	"strings"

	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-tools/pkg/crd/markers"
	"sigs.k8s.io/controller-tools/pkg/loader"
)

type (
	context = markers.SchemaContext
	schema  = apiext.JSONSchemaProps
)

// add appends a rule: holds must be true, or words, a CEL expression, says why not.
func add(s *schema, at, holds, words string) {
	r := apiext.ValidationRule{Rule: holds, MessageExpression: words}
	if at != "" {
		r.FieldPath = "." + at
	}
	s.XValidations = append(s.XValidations, r)
}

// quoted is the text of a string expression as Go's %.80q.
func quoted(e string) string {
	return fmt.Sprintf("strings.quote(%s.size() > 80 ? %s.substring(0, 80) : %s)", e, e, e)
}

// words is a CEL string literal.
func words(s string) string { return "'" + strings.ReplaceAll(s, "'", "\\'") + "'" }

// between is a number's bounds, as config's rules.between and within.
type between struct{ Least, Most string }

// ApplyToSchema adds the rules.
func (b between) ApplyToSchema(_ *context, s *schema) error {
	if s.Type == "number" {
		least, most := float(b.Least), float(b.Most)
		add(s, "", fmt.Sprintf("self >= %s && self <= %s", least, most), "string(self) + "+words("; must be ≥ "+b.Least+" and ≤ "+b.Most))
		return nil
	}
	add(s, "", "self >= "+b.Least, "string(self) + "+words("; must be ≥ "+b.Least))
	add(s, "", "self <= "+b.Most, "string(self) + "+words("; must be ≤ "+b.Most))
	return nil
}

func float(text string) string {
	if strings.Contains(text, ".") {
		return text
	}
	return text + ".0"
}

// lasts is a duration's bounds, as config's rules.lasts.
type lasts struct{ Least, Most string }

// durationForm is what time.ParseDuration reads.
const durationForm = `^([+-]?(([0-9]{1,9}([.][0-9]{0,9})?|[.][0-9]{1,9})(ns|us|µs|μs|ms|s|m|h))+|[+-]?0)$`

// ApplyToSchema adds the rules.
func (l lasts) ApplyToSchema(_ *context, s *schema) error {
	is := "self.matches(" + words(durationForm) + ")"
	most := int64(durationMax)
	s.MaxLength = &most
	add(s, "", is, quoted("self")+" + '; must be a duration such as 250ms or 30m'")
	add(s, "", "!"+is+" || duration(self) >= duration('"+l.Least+"')", "self + "+words("; must be ≥ "+l.Least))
	add(s, "", "!"+is+" || duration(self) <= duration('"+l.Most+"')", "self + "+words("; must be ≤ "+l.Most))
	return nil
}

// durationMax is the longest text of a duration.
const durationMax = 64

// size is the bounds of a size in bytes.
type size struct{ Least, Most string }

// ApplyToSchema adds the rules.
func (b size) ApplyToSchema(_ *context, s *schema) error {
	s.Type, s.Format, s.XIntOrString = "", "", true
	most := int64(durationMax)
	s.MaxLength = &most
	const is = "(type(self) == int || self.matches('^[+-]?[0-9]{1,18}(Ki|Mi|Gi|k|M|G)?$') && quantity(self).isInteger())"
	const bytes, text = "(type(self) == int ? self : quantity(self).asInteger())", "(type(self) == int ? string(self) : self)"
	add(s, "", is, quoted("self")+" + '; must be a size such as 1048576 or 16Mi'")
	add(s, "", "!"+is+" || "+bytes+" >= quantity('"+b.Least+"').asInteger()", text+" + "+words("; must be ≥ "+b.Least))
	add(s, "", "!"+is+" || "+bytes+" <= quantity('"+b.Most+"').asInteger()", text+" + "+words("; must be ≤ "+b.Most))
	return nil
}

// form is what a string must look like: config's constants of this name with Pattern,
// Words and Max behind it.
type form struct {
	Name     string
	Optional bool `marker:",optional"` // whether it may be empty
}

// ApplyToSchema adds the rule.
func (f form) ApplyToSchema(c *context, s *schema) error {
	text := map[string]constant.Value{}
	for _, part := range []string{"Pattern", "Words", "Max"} {
		v, err := constantOf(c.Package, f.Name+part)
		if err != nil {
			return err
		}
		text[part] = v
	}
	most, _ := constant.Int64Val(text["Max"])
	s.MaxLength = &most
	holds := "self.matches(" + celQuote(constant.StringVal(text["Pattern"])) + ")"
	if f.Optional {
		holds = "self == '' || " + holds
	}
	add(s, "", holds, quoted("self")+" + "+words("; must be "+constant.StringVal(text["Words"])))
	return nil
}

// celQuote is a CEL literal of any text.
func celQuote(s string) string { return strconv.Quote(s) }

// each is a form of a list's entries.
type each form

// ApplyToSchema adds the rule.
func (e each) ApplyToSchema(c *context, s *schema) error {
	return form(e).ApplyToSchema(c, s.Items.Schema)
}

// once is a list whose entries are all different, as far as Field goes.
type once struct {
	Field string `marker:",optional"`
}

// ApplyToSchema adds the rule. It names the first entry that was there before.
func (o once) ApplyToSchema(_ *context, s *schema) error {
	list, at := "self", "]: "
	if o.Field != "" {
		list, at = "self.map(e, has(e."+o.Field+") ? e."+o.Field+" : '')", "]."+o.Field+": "
	}
	// The entry that is twice, and where its second is.
	twice := list + ".filter(e, " + list + ".filter(o, o == e).size() > 1)[0]"
	add(s, "", list+".all(e, "+list+".exists_one(o, o == e))",
		fmt.Sprintf("'[' + string(%s.lastIndexOf(%s)) + '%s' + strings.quote(%s) + '; must be in the list once'", list, twice, at, twice))
	return nil
}

// oneOf is the values that a string may have.
type oneOf struct{ Values []string }

// ApplyToSchema adds the rule.
func (o oneOf) ApplyToSchema(_ *context, s *schema) error {
	n := len(o.Values) - 1
	most := int64(durationMax)
	s.MaxLength = &most
	add(s, "", "self in ['"+strings.Join(o.Values, "', '")+"']",
		quoted("self")+" + "+words("; must be "+strings.Join(o.Values[:n], ", ")+" or "+o.Values[n]))
	return nil
}

// rule is any other rule, about a field of an object where At is set.
type rule struct {
	// At is the field, of a missing one the rule holds.
	At string `marker:",optional"`
	// When is CEL: whether the rule applies.
	When string `marker:",optional"`
	// Holds is CEL: whether it holds.
	Holds string
	// Shows is CEL of the value as it is shown, "quoted" for a string; empty: it is not.
	Shows string `marker:",optional"`
	// Words say what must be.
	Words string
	// Missing is whether the rule does not hold for a missing field.
	Missing bool `marker:",optional"`
}

// ApplyToSchema adds the rule.
func (r rule) ApplyToSchema(_ *context, s *schema) error {
	holds, shows := r.Holds, r.Shows
	if shows == "quoted" {
		shows = quoted("self." + r.At)
	}
	if r.At != "" && !r.Missing {
		holds = "!has(self." + r.At + ") || " + holds
	}
	if r.When != "" {
		holds = "!(" + r.When + ") || " + holds
	}
	if shows == "" {
		s.XValidations = append(s.XValidations, apiext.ValidationRule{Rule: holds, Message: r.Words, FieldPath: "." + r.At})
		return nil
	}
	add(s, r.At, holds, shows+" + "+words("; "+r.Words))
	return nil
}

// vllmArgument is one argument of vLLM's command, which package backends judges.
type vllmArgument struct{}

// ApplyToSchema adds the rules.
func (vllmArgument) ApplyToSchema(c *context, s *schema) error {
	return nil
}

// constantOf returns a constant of a package.
func constantOf(p *loader.Package, name string) (constant.Value, error) {
	p.NeedTypesInfo()
	c, ok := p.Types.Scope().Lookup(name).(*types.Const)
	if !ok {
		return nil, fmt.Errorf("%s has no constant %s", p.PkgPath, name)
	}
	return c.Val(), nil
}

var _ = ast.Inspect
var _ = maps.Keys[map[string]int]
var _ = slices.Sort[[]string]
