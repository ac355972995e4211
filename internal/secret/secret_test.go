package secret

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const hidden = "hunter2"

func TestText(t *testing.T) {
	var out bytes.Buffer
	setting := struct {
		Key  Text
		List []Text
	}{hidden, []Text{hidden}}
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("x", "key", Text(hidden), "setting", setting)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%.3s"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+"\n", Text(hidden), setting, &setting)
	}
	fmt.Fprint(&out, errors.New(Text(hidden).String()), Text(hidden).GoString())
	if text := out.String(); strings.Contains(text, hidden) || strings.Contains(text, fmt.Sprintf("%x", hidden)) || !strings.Contains(text, redacted) {
		t.Errorf("shows the secret:\n%s", text)
	}
	if s := fmt.Sprint(Text("")); s != "" {
		t.Errorf("an empty one is shown as %q", s)
	}
}

func TestURL(t *testing.T) {
	tests := []struct{ in, want string }{
		{"http://10.0.0.1:8000/metrics", "http://10.0.0.1:8000/metrics"},
		{"http://user:hunter2@10.0.0.1:8000/metrics", "http://[redacted]@10.0.0.1:8000/metrics"},
		{"http://hunter2@h/", "http://[redacted]@h/"},
		{"http://user:hun%40ter2@h/", "http://[redacted]@h/"},
		{"http://user:a@hunter2@h/", "http://[redacted]@h/"},
		{"http://user:a/hunter2@h/x", "http://[redacted]@h/x"},
		{"http://h/metrics?token=hunter2", "http://h/metrics?[redacted]"},
		{"http://h/metrics#hunter2", "http://h/metrics#[redacted]"},
		{"http://user:a?hunter2@h/x", "http://[redacted]"},
		{"http://h/?a=b@hunter2", "http://[redacted]"},
		{"user:hunter2@h:80", "[redacted]@h:80"},
		{"", ""},
		{"http://h/?", "http://h/?"},
		{"://", "://"},
	}
	for _, tt := range tests {
		if got := fmt.Sprint(URL(tt.in)); got != tt.want {
			t.Errorf("%q is shown as %q, want %q", tt.in, got, tt.want)
		}
		for _, verb := range []string{"%q", "%#v", "%.80q", "%+v"} {
			if got := fmt.Sprintf(verb, URL(tt.in)); strings.Contains(got, hidden) {
				t.Errorf("%s shows %s", verb, got)
			}
		}
	}
}

func FuzzURL(f *testing.F) {
	f.Add("user", "pass", "h:80/x", "q=1")
	f.Fuzz(func(t *testing.T, user, pass, host, query string) {
		if len(pass) < 8 || strings.ContainsAny(host, "@?#") || strings.Contains("http://"+redacted+"@"+host, pass) || strings.Contains(user, pass) {
			return
		}
		if got := URL("http://" + user + ":" + pass + "@" + host).String(); strings.Contains(got, pass) {
			t.Errorf("shows %q", got)
		}
	})
}
