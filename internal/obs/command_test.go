package obs

import (
	"os/exec"
	"testing"
)

// TestCommandIsWhatAShellReads has a shell read words back.
func TestCommandIsWhatAShellReads(t *testing.T) {
	for _, word := range []string{"word", "/a/b.c", "", "two words", "it's", `"$HOME" \ *`, "-n", "größer"} {
		got, err := exec.Command("sh", "-c", Command("printf", "%s", "x"+word)).Output()
		if err != nil || string(got) != "x"+word {
			t.Errorf("%q: the shell reads %q, %v", word, got, err)
		}
	}
	if got := Command("millrace", "up", "-dir", "my mesh"); got != "millrace up -dir 'my mesh'" {
		t.Errorf("Command() = %s", got)
	}
	if got := Quote("/srv/mesh"); got != "/srv/mesh" {
		t.Errorf("Quote() = %s", got)
	}
}
