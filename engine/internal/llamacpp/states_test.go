package llamacpp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// slotServer answers like llama-server's slots, and lists what was asked of them.
func slotServer(t *testing.T, slots string) (backend.States, *[]string) {
	t.Helper()
	asked := &[]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slots":
			_, _ = io.WriteString(w, slots)
		case "/props":
			_, _ = io.WriteString(w, `{"build_info":"b7-abc"}`)
		default:
			var q struct{ Filename string }
			_ = json.NewDecoder(r.Body).Decode(&q)
			*asked = append(*asked, r.URL.Path+"?"+r.URL.RawQuery+" "+q.Filename)
			fmt.Fprint(w, `{"n_saved":437,"n_restored":437,"timings":{"save_ms":12.5}}`)
		}
	}))
	t.Cleanup(srv.Close)
	k := New(Programs{BackendAddress: strings.TrimPrefix(srv.URL, "http://"), StateFolder: filepath.Join(t.TempDir(), "state"), Runtime: "/cache/llamacpp-5"}, nil)
	return k.States(nil), asked
}

const fourSlots = `[{"id":0,"is_processing":true,"id_task":90,"n_prompt_tokens":437},{"id":1,"is_processing":false,"id_task":40,"n_prompt_tokens":437},
	{"id":2,"is_processing":false,"id_task":70,"n_prompt_tokens":437},{"id":3,"is_processing":false,"id_task":20,"n_prompt_tokens":12}]`

func TestSlotThatWasUsedLastIsSaved(t *testing.T) {
	s, asked := slotServer(t, fourSlots)
	saved, err := s.Save(t.Context(), nil, 438, "x") // the last token is not in the cache yet
	if err != nil || saved != (backend.Saved{Tokens: 437, Stalled: 12500 * time.Microsecond}) {
		t.Errorf("Save() = %v, %v", saved, err)
	}
	if want := "/slots/2?action=save x"; len(*asked) != 1 || (*asked)[0] != want {
		t.Errorf("asked %v, want %s", *asked, want)
	}
	for _, tokens := range []uint64{436, 439, 12000} {
		if _, err := s.Save(t.Context(), nil, tokens, "x"); !errors.Is(err, backend.ErrNoState) {
			t.Errorf("Save() of %d tokens: %v, want ErrNoState", tokens, err)
		}
	}
	if _, err := s.Save(t.Context(), nil, 12, "x"); !errors.Is(err, backend.ErrNoState) {
		t.Errorf("Save() of a slot that another request has taken: %v, want ErrNoState", err)
	}
}

func TestSlotOfLongestAgoIsRestored(t *testing.T) {
	s, asked := slotServer(t, fourSlots)
	var free []func()
	for range 3 {
		f, err := s.Restore(t.Context(), nil, "x")
		if err != nil {
			t.Fatal(err)
		}
		free = append(free, f)
	}
	if _, err := s.Restore(t.Context(), nil, "x"); !errors.Is(err, backend.ErrNoState) {
		t.Errorf("with all slots taken: %v, want ErrNoState", err)
	}
	free[1]()
	if _, err := s.Restore(t.Context(), nil, "x"); err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(*asked, ","), "/slots/3?action=restore x,/slots/1?action=restore x,/slots/2?action=restore x,/slots/1?action=restore x"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	s, asked = slotServer(t, `[{"id":0,"is_processing":false,"id_task":1,"n_prompt_tokens":9},{"id":1,"is_processing":false}]`)
	if _, err := s.Restore(t.Context(), nil, "x"); err != nil || (*asked)[0] != "/slots/1?action=restore x" {
		t.Errorf("asked %v, %v, want the empty slot", *asked, err)
	}
}

func TestIdentityIsOfAllWeights(t *testing.T) {
	s, _ := slotServer(t, "[]")
	dir := t.TempDir()
	parts := []string{filepath.Join(dir, "m-00001-of-00002.gguf"), filepath.Join(dir, "m-00002-of-00002.gguf")}
	seen := map[string]bool{}
	for i, text := range []string{"a", "b"} {
		for j, part := range parts {
			if err := os.WriteFile(part, fmt.Append(nil, text, j*i), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(part, time.Time{}, time.Unix(int64(1000+10*i+j), 0)); err != nil {
				t.Fatal(err)
			}
		}
		id, err := s.Identity(t.Context(), &enginepb.Assignment{Backend: &enginepb.Backend{Weights: parts[0]}})
		if err != nil || id.GetVersion() != "llamacpp-5 b7-abc" || id.GetKvTypes() != "f16/f16" {
			t.Fatalf("Identity() = %v, %v", id, err)
		}
		seen[string(id.GetWeightsSha256())] = true
	}
	if len(seen) != 2 {
		t.Errorf("%d identities of two models", len(seen))
	}
	if got := New(Programs{}, nil).States(nil); got != nil {
		t.Error("without a folder there are states")
	}
}

// TestWeightsAreReadOnce: what a start has summed, the next one does not read again, unless a
// file was written to since, or the note is none.
func TestWeightsAreReadOnce(t *testing.T) {
	first, _ := slotServer(t, "[]")
	k := first.(*states).k
	weights := filepath.Join(t.TempDir(), "m.gguf")
	note := filepath.Join(filepath.Dir(k.StateFolder), sumFile)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// sum is that of a new start.
	sum := func() string {
		t.Helper()
		id, err := New(Programs{BackendAddress: k.BackendAddress, StateFolder: k.StateFolder}, nil).States(nil).Identity(t.Context(), &enginepb.Assignment{Backend: &enginepb.Backend{Weights: weights}})
		if err != nil {
			t.Fatal(err)
		}
		return string(id.GetWeightsSha256())
	}
	write(weights, "a")
	a := sum()
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	var v summed
	if err := json.Unmarshal(text, &v); err != nil || string(v.Sha256) != a {
		t.Fatalf("the note is %s, %v", text, err)
	}
	v.Sha256[0]++ // which shows who reads the note
	if text, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	write(note, string(text))
	if got := sum(); got != string(v.Sha256) {
		t.Error("the weights are read again")
	}
	for _, torn := range []string{"", "{", `{"files": 1}`, string(text[:len(text)/2]), strings.Replace(string(text), `"sha256":"`, `"sha256":"AA`, 1)} {
		write(note, torn)
		if got := sum(); got != a {
			t.Errorf("with the note %.40q the sum is another one", torn)
		}
	}
	before, err := os.Stat(weights)
	if err != nil {
		t.Fatal(err)
	}
	write(weights, "b")
	if err := os.Chtimes(weights, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := sum(); got == a {
		t.Error("weights of the same size and time have the sum of others")
	}
}
