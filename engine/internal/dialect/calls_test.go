package dialect

import (
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// TestChoiceIsRefusedInTheAPIsWords names what may be asked for as the API has it.
func TestChoiceIsRefusedInTheAPIsWords(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":`
	for choice, want := range map[string]string{
		`"always"`:       `tool_choice: "always"; must be none, auto, required or an object`,
		`7`:              `tool_choice: must be a string or an object`,
		`{"type":"any"}`: `tool_choice.type: "any"; must be function or allowed_tools`,
		`{"type":"allowed_tools","allowed_tools":{"mode":"none"}}`: `tool_choice.allowed_tools.mode: "none"; must be auto or required`,
	} {
		if _, fault := ReadCalls(request(t, apis.Chat, "{"+tools+choice+"}").Fields); fault == nil || fault.Message != want {
			t.Errorf("%s: %+v, want %s", choice, fault, want)
		}
	}
}
