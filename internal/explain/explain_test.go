package explain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what is found to testdata")

func TestExplain(t *testing.T) {
	tests := []struct{ name, id string }{
		{"streamed", "4debbcfb-221f-489b-9439-041740495501"},
		{"begins-so", "4debbcfb"},
		{"by-cost", "eeee"},
		{"queued", "ffff"},
		{"retried", "aaaa"},
		{"by-trace", "c0ffee"},
		{"shed", "bbbb"},
		{"failed", "cccc"},
		{"last", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Run(t.Context(), Options{Log: "testdata/access.log", ID: tt.id, Out: &out}); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", tt.name+".txt")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), out.String()); d != "" {
				t.Errorf("%s differs; review it, then run with -update (-want +got):\n%s", golden, d)
			}
		})
	}
}

func TestExplainAsJSON(t *testing.T) {
	log, err := os.Open("testdata/access.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Log: "-", In: log, ID: "aaaa", JSON: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	d := r.Decided
	if r.Happened.Status != 200 || *r.Happened.Attempts != 2 || r.Happened.OutputTokens != nil || d == nil || d.Asked != "gpt" ||
		d.Reason != "new" || len(d.Endpoints) != 2 || *d.Endpoints[1].Millis != 890 || *d.PromptTokens != 120 {
		t.Errorf("explained as %s", out.String())
	}
}

// TestTheLastOneIsOnItsWay has a request's line come to the log after it was asked for.
func TestTheLastOneIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := filepath.Join(t.TempDir(), "access.log")
		line := func(id string) string { return `{"request_id":"` + id + `","path":"/v1/models","status":200}` + "\n" }
		if err := os.WriteFile(log, []byte(line("before")), 0o600); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(200 * time.Millisecond)
			if err := os.WriteFile(log, []byte(line("before")+line("last")), 0o600); err != nil {
				t.Error(err)
			}
		}()
		var out bytes.Buffer
		if err := Run(t.Context(), Options{Log: log, Wait: time.Second, Out: &out}); err != nil || !strings.Contains(out.String(), "request last") {
			t.Errorf("%v; the last one is\n%s", err, out.String())
		}
	})
}

func TestExplainWhatIsNotThere(t *testing.T) {
	run := func(log, id string) error {
		return Run(t.Context(), Options{Log: log, ID: id, Out: &bytes.Buffer{}})
	}
	if err := run("testdata/access.log", "no-such"); !errors.Is(err, errNoLine) {
		t.Errorf("an unknown id: %v", err)
	}
	if err := run("testdata/access.log", "dddd"); !errors.Is(err, errNoLine) {
		t.Errorf("a line that is still being written: %v", err)
	}
	if err := run("testdata/none.log", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Options{Log: "testdata/access.log", ID: "no-such", Wait: 1 << 40, Out: &bytes.Buffer{}}); !errors.Is(err, context.Canceled) {
		t.Errorf("the wait for a line does not end with its context: %v", err)
	}
}

func FuzzExplain(f *testing.F) {
	all, err := os.ReadFile("testdata/access.log")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		f.Add([]byte(line))
	}
	f.Add([]byte(`{"path":"/","decision":", ,1 (","status":{},"attempts":1e400,"flags":",,"}` + "\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		for _, asJSON := range []bool{false, true} {
			var out bytes.Buffer
			err := Run(t.Context(), Options{Log: "-", In: bytes.NewReader(log), JSON: asJSON, Out: &out})
			if err == nil && out.Len() == 0 {
				t.Error("nothing is said, and no error")
			}
		}
	})
}
