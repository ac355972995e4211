package nearest

import (
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	names := []string{"listen", "dir", "d", "config", "watch", "model"}
	for name, want := range map[string]string{
		"lisen": "listen", "LISTEN": "listen", "dri": "dir", "dirs": "dir", "x": "", "conifg": "config",
		"wacth": "watch", "modle": "model", "watch-": "watch", "tchwa": "",
		"colour": "", "": "", strings.Repeat("listen", 20): "",
	} {
		if got := Of(name, names); got != want {
			t.Errorf("Of(%q) = %q, want %q", name, got, want)
		}
	}
}
