package traces

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"millrace.dev/millrace/internal/regular"
)

// Span is one part of a request.
type Span struct {
	// Service is the program, Node the node that it is on; empty: none.
	Service, Node string
	Name          string
	ID, Parent    string
	Start, End    time.Time
	Attributes    map[string]any // texts, numbers as float64, bools and lists of texts
	Failed        bool
}

// Took is how long it was.
func (s *Span) Took() time.Duration { return s.End.Sub(s.Start) }

// ErrNoTrace is the error of a trace that no file has.
var ErrNoTrace = errors.New("no span of it is in the files of traces")

// longestLine bounds a line that is read, in bytes.
const longestLine = maxMessage

// Read returns the spans of a trace that a Receiver has written to the file at path, each once,
// the first to begin first.
func Read(path, trace string) ([]Span, error) {
	if trace == "" {
		return nil, ErrNoTrace
	}
	found := map[string]Span{} // by id
	var errs []error
	for _, name := range []string{Kept(path) + ".old", Kept(path), path + ".old", path} {
		err := readFile(name, trace, found)
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && name != path) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("trace %s: %w", trace, ErrNoTrace)
	}
	all := make([]Span, 0, len(found))
	for _, s := range found {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Span) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return b.End.Compare(a.End)
	})
	return all, nil
}

func readFile(name, trace string, found map[string]Span) error {
	f, err := regular.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return scan(f, trace, found)
}

// scan adds the spans of a trace. A line that is being written, or is of another form, is
// passed over.
func scan(r io.Reader, trace string, found map[string]Span) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), longestLine)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(trace)) {
			continue
		}
		var l line
		if json.Unmarshal(lines.Bytes(), &l) == nil {
			l.spans(trace, found)
		}
	}
	return lines.Err()
}
