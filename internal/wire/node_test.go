package wire

import (
	"regexp"
	"strings"
	"testing"
)

func TestNodeName(t *testing.T) {
	rule := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // of NodeReport.node
	long := strings.Repeat("a", 60) + ".example.org"
	tests := map[string]string{
		"node-a":                        "node-a",
		"ip-10-0-0-7.eu-west-1.example": "ip-10-0-0-7-eu-west-1-example",
		long:                            strings.Repeat("a", 54) + "-",
	}
	for name, want := range tests {
		got := NodeName(name)
		if !strings.HasPrefix(got, want) || !rule.MatchString(got) || len(name) <= maxNode && got != want {
			t.Errorf("NodeName(%q) = %q, want %q", name, got, want)
		}
	}
	if other := strings.Repeat("a", 60) + ".example.com"; NodeName(long) == NodeName(other) {
		t.Errorf("%s and %s have the same name", long, other)
	}
}
