package nearest

import (
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	names := []string{"listen", "dir", "d", "config"}
	for name, want := range map[string]string{
		"lisen": "listen", "LISTEN": "listen", "dri": "", "dirs": "dir", "x": "", "conifg": "config",
		"colour": "", "": "", strings.Repeat("listen", 20): "",
	} {
		if got := Of(name, names); got != want {
			t.Errorf("Of(%q) = %q, want %q", name, got, want)
		}
	}
}
