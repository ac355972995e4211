package main

import (
	"fmt"
	"go/constant"
	"go/types"
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

// add appends a rule: holds must be true, or words say why not. In words, {…} is CEL of a
// text.
func add(s *schema, at, holds, words string) {
	r := apiext.ValidationRule{Rule: holds}
	if at != "" {
		r.FieldPath = "." + at
	}
	if strings.Contains(words, "{") {
		r.MessageExpression = message(words)
	} else {
		r.Message = words
	}
	s.XValidations = append(s.XValidations, r)
}

// message is CEL of words. It is one call of format, whose cost an API server can
// estimate; that of texts that are added up grows with the longest that there could be.
func message(words string) string {
	var args []string
	format := ""
	for words != "" {
		text, rest, _ := strings.Cut(words, "{")
		format += strings.ReplaceAll(text, "%", "%%")
		if rest == "" {
			break
		}
		end := closing(rest)
		format += "%s"
		args = append(args, rest[:end])
		words = rest[end+1:]
	}
	return "'" + strings.ReplaceAll(format, "'", "\\'") + "'.format([" + strings.Join(args, ", ") + "])"
}

// closing returns where the brace is that closes one before s.
func closing(s string) int {
	open := 1
	for i, c := range s {
		switch c {
		case '{':
			open++
		case '}':
			open--
		}
		if open == 0 {
			return i
		}
	}
	return len(s) - 1
}

// quoted is words that show a string as Go's %.80q.
func quoted(e string) string {
	return fmt.Sprintf("{strings.quote(%s.size() > 80 ? %s.substring(0, 80) : %s)}", e, e, e)
}

// between is a number's bounds, as config's rules.between and within.
type between struct{ Least, Most string }

// ApplyToSchema adds the rules.
func (b between) ApplyToSchema(_ *context, s *schema) error {
	if s.Type == "number" {
		least, most := float(b.Least), float(b.Most)
		add(s, "", fmt.Sprintf("self >= %s && self <= %s", least, most), "{string(self)}; must be ≥ "+b.Least+" and ≤ "+b.Most)
		return nil
	}
	add(s, "", "self >= "+b.Least, "{string(self)}; must be ≥ "+b.Least)
	add(s, "", "self <= "+b.Most, "{string(self)}; must be ≤ "+b.Most)
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
	is := "self.matches(" + celQuote(durationForm) + ")"
	most := int64(durationMax)
	s.MaxLength = &most
	add(s, "", is, quoted("self")+"; must be a duration such as 250ms or 30m")
	add(s, "", "!"+is+" || duration(self) >= duration('"+l.Least+"')", "{self}; must be ≥ "+l.Least)
	add(s, "", "!"+is+" || duration(self) <= duration('"+l.Most+"')", "{self}; must be ≤ "+l.Most)
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
	const bytes, text = "(type(self) == int ? self : quantity(self).asInteger())", "{type(self) == int ? string(self) : self}"
	add(s, "", is, quoted("self")+"; must be a size such as 1048576 or 16Mi")
	add(s, "", "!"+is+" || "+bytes+" >= quantity('"+b.Least+"').asInteger()", text+"; must be ≥ "+b.Least)
	add(s, "", "!"+is+" || "+bytes+" <= quantity('"+b.Most+"').asInteger()", text+"; must be ≤ "+b.Most)
	return nil
}

// form is what a string must look like: config's constants of this name with Pattern,
// Words and Max behind it.
type form struct {
	Name string
	// Of is the package that the constants are in; empty: the one of the marker.
	Of string `marker:",optional"`
	// Optional is whether it may be empty.
	Optional bool `marker:",optional"`
	// Also is CEL that must hold, too.
	Also string `marker:",optional"`
	// Hidden is whether what it is is not shown: there may be a secret in it.
	Hidden bool `marker:",optional"`
}

// ApplyToSchema adds the rule.
func (f form) ApplyToSchema(c *context, s *schema) error {
	of := c.Package
	if f.Of != "" {
		of = of.Imports()[f.Of]
	}
	p, err := formOf(of, f.Name)
	if err != nil {
		return err
	}
	s.MaxLength = &p.most
	holds := "self.matches(" + celQuote(p.pattern) + ")"
	if f.Also != "" {
		holds += " && " + f.Also
	}
	if f.Optional {
		holds = "self == '' || " + holds
	}
	words := "must be " + p.words
	if !f.Hidden {
		words = quoted("self") + "; " + words
	}
	add(s, "", holds, words)
	return nil
}

// parts are what constants say of a form.
type parts struct {
	pattern, words string
	most           int64
}

func formOf(p *loader.Package, name string) (parts, error) {
	var values [3]constant.Value
	for i, part := range []string{"Pattern", "Words", "Max"} {
		p.NeedTypesInfo()
		c, ok := p.Types.Scope().Lookup(name + part).(*types.Const)
		if !ok {
			return parts{}, fmt.Errorf("%s has no constant %s", p.PkgPath, name+part)
		}
		values[i] = c.Val()
	}
	most, _ := constant.Int64Val(values[2])
	return parts{constant.StringVal(values[0]), constant.StringVal(values[1]), most}, nil
}

// celQuote is a CEL literal of any text.
func celQuote(s string) string { return strconv.Quote(s) }

// each is a form of a list's entries.
type each form

// ApplyToSchema adds the rule.
func (e each) ApplyToSchema(c *context, s *schema) error {
	return form(e).ApplyToSchema(c, s.Items.Schema)
}

// eachRule is a rule of a list's entries.
type eachRule rule

// ApplyToSchema adds the rule.
func (e eachRule) ApplyToSchema(c *context, s *schema) error {
	return rule(e).ApplyToSchema(c, s.Items.Schema)
}

// once is a list whose entries are all different.
type once struct {
	// Same is CEL of whether the entries e and o are the same; empty: they are equal.
	Same string `marker:",optional"`
	// Field is the one that is shown of an entry; empty: the entry is.
	Field string `marker:",optional"`
}

// ApplyToSchema adds the rule. It names the last entry that was there before.
func (o once) ApplyToSchema(_ *context, s *schema) error {
	same, field := o.Same, ""
	if same == "" {
		same = "o == e"
	}
	if o.Field != "" {
		field = "." + o.Field
	}
	at := "self.map(e, self.filter(o, " + same + ").size() > 1).lastIndexOf(true)"
	add(s, "", "self.all(e, self.filter(o, "+same+").size() <= 1)",
		"[{string("+at+")}]"+field+": {strings.quote(self["+at+"]"+field+")}; must be in the list once")
	return nil
}

// address is ip:port; Host is whether that of one host, as trust.Address has it.
type address struct {
	Words    string
	Optional bool `marker:",optional"`
	Host     bool `marker:",optional"`
}

// ApplyToSchema adds the rule.
func (a address) ApplyToSchema(_ *context, s *schema) error {
	most := int64(durationMax)
	s.MaxLength = &most
	const (
		port  = "int(self.substring(self.lastIndexOf(':') + 1))"
		host  = `self.substring(0, self.lastIndexOf(':')).replace('[', '').replace(']', '')`
		holds = `self.matches('^([0-9.]+|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}$')` +
			` && isIP(` + host + `) && ` + port + " >= 1 && " + port + " <= 65535"
		// An API server takes no IPv4 written as IPv6 for an IP but where that is by prefix.
		one = ` && [ip(` + host + `)].all(i, i.isLoopback() || i.isGlobalUnicast()` +
			` && !['0.0.0.0/8', '240.0.0.0/4', '64:ff9b::/96', '64:ff9b:1::/48', '2002::/16', '::/96'].exists(c, cidr(c).containsIP(i)))`
	)
	rule := holds
	if a.Host {
		rule += one
	}
	if a.Optional {
		rule = "self == '' || " + rule
	}
	add(s, "", rule, quoted("self")+"; "+a.Words)
	return nil
}

// labels are names of labels with their values.
type labels struct{}

// ApplyToSchema adds the rules.
func (labels) ApplyToSchema(c *context, s *schema) error {
	key, err := formOf(c.Package, "labelKey")
	if err != nil {
		return err
	}
	value, err := formOf(c.Package, "labelValue")
	if err != nil {
		return err
	}
	s.AdditionalProperties.Schema.MaxLength = &value.most
	bad := "!k.matches(" + celQuote(key.pattern) + ") || k.size() > " + strconv.FormatInt(key.most, 10)
	add(s, "", "!self.exists(k, "+bad+")",
		quoted("self.filter(k, "+bad+")[0]")+"; must be "+key.words)
	bad = "!self[k].matches(" + celQuote(value.pattern) + ")"
	first := "self.filter(k, " + bad + ")[0]"
	add(s, "", "!self.exists(k, "+bad+")",
		".{"+first+"}: {strings.quote(self["+first+"])}; must be "+value.words)
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
		quoted("self")+"; must be "+strings.Join(o.Values[:n], ", ")+" or "+o.Values[n])
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
	// Shows is how the value is shown: "quoted", or words; empty: not at all.
	Shows string `marker:",optional"`
	// Words say what must be. In these and Shows, {…} is CEL of a text.
	Words string
	// Missing is whether the rule does not hold for a missing field.
	Missing bool `marker:",optional"`
}

// ApplyToSchema adds the rule.
func (r rule) ApplyToSchema(_ *context, s *schema) error {
	holds := r.Holds
	if r.When != "" {
		holds = "!(" + r.When + ") || " + holds
	}
	if r.At != "" && !r.Missing {
		holds = "!has(self." + r.At + ") || " + holds
	}
	text := r.Words
	switch {
	case r.Shows == "quoted":
		text = quoted("self."+r.At) + "; " + text
	case r.Shows != "":
		text = r.Shows + "; " + text
	}
	add(s, r.At, holds, text)
	return nil
}
