package house

import (
	"go/ast"
	"testing"
)

// TestClientsCloseIdleConnectionsFirst holds internal/wire's rule for idle connections where
// they are made.
func TestClientsCloseIdleConnectionsFirst(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated() || !programCode(s) || below(s.name, []string{"e2e"}) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				if named(n.Type, "http", "Transport") && !bounded(n) {
					t.Errorf("%s:%d: an http.Transport that keeps idle connections for as long as it likes; say IdleConnTimeout: wire.ClientIdle, or DisableKeepAlives: true", s.name, s.line(n.Pos()))
				}
			case *ast.CallExpr:
				if called(n) == "new" && len(n.Args) == 1 && named(n.Args[0], "http", "Transport") {
					t.Errorf("%s:%d: new(http.Transport) keeps idle connections for ever; say IdleConnTimeout: wire.ClientIdle, or DisableKeepAlives: true", s.name, s.line(n.Pos()))
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "MaxConnectionIdle" {
					t.Errorf("%s:%d: MaxConnectionIdle; no gRPC server of ours closes idle connections, so that no call meets one that is being closed", s.name, s.line(n.Pos()))
				}
			}
			return true
		})
	}
}

// bounded is whether a Transport keeps idle connections shorter than servers do, or none.
func bounded(transport *ast.CompositeLit) bool {
	for _, e := range transport.Elts {
		field, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, _ := field.Key.(*ast.Ident)
		if key.Name == "IdleConnTimeout" && named(field.Value, "wire", "ClientIdle") {
			return true
		}
		if value, ok := field.Value.(*ast.Ident); key.Name == "DisableKeepAlives" && ok && value.Name == "true" {
			return true
		}
	}
	return false
}

// named is whether x is of.name.
func named(x ast.Expr, of, name string) bool {
	s, ok := x.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	p, ok := s.X.(*ast.Ident)
	return ok && p.Name == of && s.Sel.Name == name
}
