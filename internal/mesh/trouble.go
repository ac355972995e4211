package mesh

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"millrace.dev/millrace/internal/regular"
)

const (
	// deathsUntilTrouble is how many short runs in a row are more than bad luck.
	deathsUntilTrouble = 3
	// shortRun is a run that did not get anywhere.
	shortRun = 5 * time.Second
	// complainEvery bounds how often the same trouble is printed.
	complainEvery = 30 * time.Second
)

// trouble knows which processes don't stay up, and puts it in one line for all
// of a kind.
type trouble struct {
	size map[string]int // processes by role; constant

	// mu guards the fields below.
	mu      sync.Mutex
	deaths  map[string]int       // short runs in a row, by process
	printed map[string]time.Time // last complaint, by role
	text    map[string]string    // what it said, by role
}

func newTrouble(specs []Spec) *trouble {
	t := &trouble{size: map[string]int{}, deaths: map[string]int{}, printed: map[string]time.Time{}, text: map[string]string{}}
	for _, s := range specs {
		t.size[s.Role]++
	}
	return t
}

// quiet reports whether the process's single deaths are no news any more.
func (t *trouble) quiet(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.deaths[name] >= deathsUntilTrouble
}

// died counts a death and returns the line to print, if any.
func (t *trouble) died(spec Spec, err error, ran time.Duration) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ran >= shortRun {
		delete(t.deaths, spec.Name)
		return ""
	}
	t.deaths[spec.Name]++
	if t.deaths[spec.Name] < deathsUntilTrouble {
		return ""
	}
	text := fmt.Sprintf("%s: %v: %s", t.whoLocked(spec), err, lastLine(spec.Log))
	if text == t.text[spec.Role] && time.Since(t.printed[spec.Role]) < complainEvery {
		return ""
	}
	t.printed[spec.Role], t.text[spec.Role] = time.Now(), text
	return text + "; still trying; log: " + spec.Log
}

// whoLocked names what doesn't stay up: one process, or all of its kind.
func (t *trouble) whoLocked(spec Spec) string {
	n := 0
	for name, deaths := range t.deaths {
		if deaths >= deathsUntilTrouble && (name == spec.Role || strings.HasPrefix(name, spec.Role+"@")) {
			n++
		}
	}
	switch all := t.size[spec.Role]; {
	case all == 1 || n == 1:
		return spec.Name + " does not stay up"
	case n == all:
		return fmt.Sprintf("no %s stays up (%d of %d)", spec.Role, n, all)
	default:
		return fmt.Sprintf("%d of %d %ss don't stay up", n, all, spec.Role)
	}
}

// lastLine returns the last line of a log, shortened: mostly it is the reason.
func lastLine(path string) string {
	const tail, most = 4096, 300
	f, err := regular.Open(path)
	if err != nil {
		return "no log"
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > tail {
		_, _ = f.Seek(-tail, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, tail))
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return "it said nothing"
	}
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return string(b[:min(len(b), most)])
}
