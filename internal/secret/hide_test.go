package secret

import (
	"strings"
	"testing"
)

func TestHide(t *testing.T) {
	for text, want := range map[string]string{
		`-xds: "user:hunter2@h:1"; must be ip:port`:               `-xds: "[redacted]@h:1"; must be ip:port`,
		`traces: "otlp://user:hunter2@h:4317": address`:           `traces: "otlp://[redacted]@h:4317": address`,
		`dial https://hunter2@h/x: refused`:                       `dial https://[redacted]@h/x: refused`,
		`address user:hunter2@h:1: too many colons`:               `address [redacted]@h:1: too many colons`,
		`-extproc=:hunter2@h:1,u:hunter2@i:1`:                     `-extproc=[redacted]@i:1`,
		`"user:hunter2@hunter2@h:1"`:                              `"[redacted]@h:1"`,
		`http://10.0.0.1:8000/v1/models`:                          `http://10.0.0.1:8000/v1/models`,
		`"user:hunter2/hunter2?hunter2@h"`:                        `"[redacted]@h"`,
		`model "org/name@main" does not exist`:                    `model "org/name@main" does not exist`,
		`at 12:30 somebody@example.org said: no`:                  `at 12:30 somebody@example.org said: no`,
		`engine a:8000: probe: connection refused`:                `engine a:8000: probe: connection refused`,
		`image millrace.dev/xds:0.1.0 is not there, http://[::1]`: `image millrace.dev/xds:0.1.0 is not there, http://[::1]`,
	} {
		got := Hide(text)
		if got != want || strings.Contains(got, hidden) {
			t.Errorf("Hide(%s) = %s, want %s", text, got, want)
		}
		if again := Hide(got); strings.Contains(again, hidden) {
			t.Errorf("Hide(%s) = %s", got, again)
		}
	}
}

func FuzzHide(f *testing.F) {
	f.Add("http", "user", "pass", "host:1")
	f.Fuzz(func(t *testing.T, scheme, user, _, host string) {
		if strings.ContainsAny(user+host+scheme, " \t\r\n\f\v\"'@/=,;(:") || user == "" {
			return
		}
		if got := Hide(scheme + "://" + user + ":" + hidden + "@" + host); strings.Contains(got, hidden) && !strings.Contains(scheme+user+host, hidden) {
			t.Errorf("%q has it", got)
		}
	})
}
