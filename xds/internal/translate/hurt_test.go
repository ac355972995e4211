package translate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/wire"
)

// TestTheScriptIsTheSameEverywhere holds the script of standalone.yaml, and the names in it,
// to what the programs go by.
func TestTheScriptIsTheSameEverywhere(t *testing.T) {
	for _, name := range []string{wire.TriesHeader, wire.UnansweredHeader, wire.LostHeader, wire.AttemptsHeader, haltHeader} {
		if !strings.Contains(hurtScript, `"`+name+`"`) {
			t.Errorf("the script does not name %s", name)
		}
	}
	yaml, err := os.ReadFile(filepath.Join("..", "..", "..", "envoy", "standalone.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var flat strings.Builder
	for line := range strings.Lines(string(yaml)) {
		flat.WriteString(strings.TrimLeft(line, " "))
	}
	var script strings.Builder
	for line := range strings.Lines(hurtScript) {
		script.WriteString(strings.TrimLeft(line, " "))
	}
	if !strings.Contains(flat.String(), script.String()) {
		t.Error("standalone.yaml has another script than hurt.lua")
	}
}
