package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/controller-tools/pkg/loader"
)

// vllmArgument is one argument of vLLM's command. Which ones are refused, and why, is in
// the map vllmOwn of the package Of.
type vllmArgument struct{ Of string }

// ApplyToSchema adds the rules, as backends.vllmArgs has them.
func (v vllmArgument) ApplyToSchema(c *context, s *schema) error {
	own, err := texts(c.Package.Imports()[v.Of], "vllmOwn")
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(own))
	var entries []string
	for _, n := range names {
		entries = append(entries, celQuote(n)+": "+celQuote(own[n]))
	}
	item := s.Items.Schema
	add(item, "", `!self.matches('\\p{Cc}')`, quoted("self")+"; must have no control characters")
	add(item, "", "self != '--'", quoted("self")+"; must begin with an argument's name, such as --dtype")
	list := "['" + strings.Join(names, "', '") + "']"
	// A list of one binds a name. n is the argument up to a "=", l a long one without
	// what vLLM takes for the same.
	const (
		n = "[self.indexOf('=') >= 0 ? self.substring(0, self.indexOf('=')) : self]"
		l = "[(n.indexOf('.') >= 0 ? n.substring(0, n.indexOf('.')) : n).replace('_', '-')]"
	)
	refused := n + ".exists(n, n.startsWith('--') ? " + l + ".exists(l, l.size() >= 4 && " + list + ".exists(k, k.startsWith(l)))" +
		" : n in " + list + " || n.size() >= 3 && n.substring(0, 2) in " + list + ")"
	why := "[{" + strings.Join(entries, ", ") + "}].map(m, " + n + ".map(n, n.startsWith('--') ? " + l + ".map(l, l in m ? m[l] : " +
		list + ".filter(k, k.startsWith(l)).map(k, 'it is short for %s, and %s'.format([k, m[k]]))[0])[0] : n in m ? m[n] : m[n.substring(0, 2)])[0])[0]"
	add(item, "", "!"+refused, quoted("self")+"; must be left out: {"+why+"}")
	return nil
}

// texts returns a package's variable that is a map of texts.
func texts(p *loader.Package, name string) (map[string]string, error) {
	if p == nil {
		return nil, fmt.Errorf("no package with %s is imported", name)
	}
	p.NeedTypesInfo()
	for id, of := range p.TypesInfo.Defs {
		if id.Name != name || id.Obj == nil {
			continue
		}
		spec, ok := id.Obj.Decl.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return nil, fmt.Errorf("%s is %v", name, of)
		}
		return literal(p.TypesInfo, spec.Values[0])
	}
	return nil, fmt.Errorf("%s has no variable %s", p.PkgPath, name)
}

func literal(info *types.Info, e ast.Expr) (map[string]string, error) {
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil, fmt.Errorf("%T; must be a literal", e)
	}
	all := map[string]string{}
	for _, el := range lit.Elts {
		kv, ok := el.(*ast.KeyValueExpr)
		if !ok {
			return nil, fmt.Errorf("%T; must be a key with its value", el)
		}
		key, value := info.Types[kv.Key].Value, info.Types[kv.Value].Value
		if key == nil || value == nil {
			return nil, fmt.Errorf("an entry is not constant")
		}
		all[constant.StringVal(key)] = constant.StringVal(value)
	}
	return all, nil
}
