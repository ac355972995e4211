package config

import (
	"reflect"
	"regexp"
	"slices"
	"testing"

	"millrace.dev/millrace/internal/secret"
)

// TestSecretsHaveTheirTypes finds settings whose names sound as if they held a secret, or an
// address that may have one within: they have a type that shows itself redacted, or hold the
// name of a file, a variable or a header.
func TestSecretsHaveTheirTypes(t *testing.T) {
	sounds := regexp.MustCompile(`(?i)(url|metrics|health|key|token|password|secret|credential|auth|value)`)
	// What holds no secret, by type and field.
	harmless := []string{
		"Cookie.KeyFile", "EngineTLS.Key", "FleetModel.Tokenizer", "ModelSpec.Tokenizer", // paths
		"Backend.URL", // who asks may not stand in it
	}
	found := 0
	seen := map[reflect.Type]bool{}
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer, reflect.Array:
			walk(typ.Elem())
		case reflect.Map:
			walk(typ.Key())
			walk(typ.Elem())
		case reflect.Struct:
			if seen[typ] {
				return
			}
			seen[typ] = true
			for i := range typ.NumField() {
				f := typ.Field(i)
				walk(f.Type)
				if f.Type.Kind() != reflect.String || !sounds.MatchString(f.Name) {
					continue
				}
				found++
				name := typ.Name() + "." + f.Name
				hidden := f.Type == reflect.TypeFor[secret.Text]() || f.Type == reflect.TypeFor[secret.URL]()
				if hidden == slices.Contains(harmless, name) {
					t.Errorf("%s is a %v; must be of package secret, or be listed here as harmless", name, f.Type)
				}
			}
		}
	}
	walk(reflect.TypeFor[Fleet]())
	walk(reflect.TypeFor[File]())
	if found < 6 || !seen[reflect.TypeFor[Endpoint]()] || !seen[reflect.TypeFor[ModelSpec]()] {
		t.Errorf("only %d settings were found", found)
	}
}
