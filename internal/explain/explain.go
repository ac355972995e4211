// Package explain is `millrace explain`: what was decided of one request, and what came
// of it, in words.
//
// Called by the millrace command. Its one rule: it goes by a line of Envoy's access log
// alone, so that it works in a mesh, in front of engines that somebody else runs, and for
// what happened before any program was restarted.
package explain

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/wire"
)

// Options is what `millrace explain` is asked for.
type Options struct {
	// Log is the path of Envoy's access log, in JSON lines; "-": In has it.
	Log string
	In  io.Reader
	// ID is the request's id or its trace's, or how it begins; empty: the last request.
	ID string
	// Wait is how long a line may still be on its way to the log.
	Wait time.Duration
	// JSON asks for JSON instead of words.
	JSON bool
	Out  io.Writer
}

// longestLine bounds a line of the log, in bytes; longer ones are passed over.
const longestLine = 1 << 20

// readEvery is how often the log is read again while the line is awaited.
const readEvery = 100 * time.Millisecond

// settles is how long the line of the last request may be on its way to the log of a mesh:
// its Envoy writes it five times a second. Without that the one before it would be the last.
const settles = 300 * time.Millisecond

// errNoLine is the error of a request that is not in the log.
var errNoLine = errors.New("no such request in the log")

// Run finds the line and explains it.
func Run(ctx context.Context, o Options) error {
	r, err := Find(ctx, o)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	if o.JSON {
		enc := json.NewEncoder(o.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	_, err = io.WriteString(o.Out, r.words())
	return err
}

// Find finds the line of a request and reads it.
func Find(ctx context.Context, o Options) (*Report, error) {
	line, err := find(ctx, &o)
	switch {
	case errors.Is(err, errNoLine):
		return nil, &obs.Hint{Err: fmt.Errorf("%s: %w", o.Log, err), Next: "give the x-request-id of an answer, or -last; Envoy may write a line up to 10 s late, and leaves out ids where the log has no request_id (envoy/standalone.yaml)"}
	case errors.Is(err, fs.ErrNotExist):
		return nil, &obs.Hint{Err: err, Next: "name the access log with -log, or the folder of the mesh with -dir"}
	case err != nil:
		return nil, err
	}
	r, err := read(line)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Log, err)
	}
	return r, nil
}

// find returns the line of the request, and waits for it if it may still come.
func find(ctx context.Context, o *Options) ([]byte, error) {
	if o.Log == "-" {
		return search(o.In, o.ID)
	}
	deadline := time.Now().Add(o.Wait)
	if o.ID == "" {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(settles, o.Wait)):
		}
	}
	for {
		line, err := searchFile(o.Log, o.ID)
		if !errors.Is(err, errNoLine) || time.Now().After(deadline) {
			return line, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(readEvery):
		}
	}
}

func searchFile(path, id string) ([]byte, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return search(f, id)
}

// search returns the last line of a request with an id; an empty id: the last of all.
func search(r io.Reader, id string) (found []byte, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line) <= longestLine {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && found == nil:
			return nil, errNoLine
		case err == io.EOF: // a line that is not whole is still being written
			return found, nil
		case err != nil:
			return nil, err
		}
		if len(line) <= longestLine && is(line, id) {
			found = append(found[:0], line...)
		}
		line = line[:0]
	}
}

// is reports whether a line is of a request with an id.
func is(line []byte, id string) bool {
	if !bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("{")) || !bytes.Contains(line, []byte(id)) {
		return false
	}
	var e struct {
		RequestID string `json:"request_id"`
		Trace     string `json:"trace"`
		Path      string `json:"path"`
	}
	if json.Unmarshal(line, &e) != nil {
		return false
	}
	if id == "" {
		return e.Path != ""
	}
	return strings.HasPrefix(e.RequestID, id) || strings.HasPrefix(e.Trace, id)
}

// read decodes a line.
func read(line []byte) (*Report, error) {
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, fmt.Errorf("a line of another form: %w", err)
	}
	return e.report(), nil
}

// entry is a line of the access log. What Envoy does not know is null, or "-".
type entry struct {
	At        string   `json:"ts"`
	RequestID text     `json:"request_id"`
	Trace     text     `json:"trace"`
	Method    text     `json:"method"`
	Path      text     `json:"path"`
	Status    number   `json:"status"`
	Flags     text     `json:"flags"`
	Details   text     `json:"details"`
	Host      text     `json:"host"`
	Node      text     `json:"node"`
	Attempts  number   `json:"attempts"`
	Duration  number   `json:"duration_ms"`
	Model     text     `json:"model"`
	Asked     text     `json:"asked"`
	Session   text     `json:"session"`
	Priority  text     `json:"priority"`
	Decision  text     `json:"decision"`
	First     number   `json:"ttft_ms"`
	Prompt    number   `json:"prompt_tokens"`
	Cached    number   `json:"cached_tokens"`
	Output    number   `json:"output_tokens"`
	Expected  expected `json:"-"`
}

// expected are the estimates of a line.
type expected struct {
	Prompt number `json:"expected_prompt_tokens"`
	Cached number `json:"expected_cached_tokens"`
	Output number `json:"expected_output_tokens"`
}

// UnmarshalJSON reads a line.
func (e *entry) UnmarshalJSON(b []byte) error {
	type fields entry
	if err := json.Unmarshal(b, (*fields)(e)); err != nil {
		return err
	}
	return json.Unmarshal(b, &e.Expected)
}

// text is a text that may be null, "-", or anything else, which is shown as it stands.
type text string

// UnmarshalJSON reads any value.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	switch {
	case string(b) == "null":
		*t = ""
	case json.Unmarshal(b, &s) == nil && s == "-":
		*t = ""
	case s != "":
		*t = text(s)
	default:
		*t = text(b)
	}
	return nil
}

// number is a number that may be unknown, or written as a text.
type number struct{ v *float64 }

// UnmarshalJSON reads a number, or a text that is one.
func (n *number) UnmarshalJSON(b []byte) error {
	var v float64
	if json.Unmarshal(bytes.Trim(b, `"`), &v) == nil && string(b) != "null" {
		n.v = &v
	}
	return nil
}

// int is the number as a whole one; nil: not known.
func (n number) int() *int {
	if n.v == nil {
		return nil
	}
	i := int(*n.v)
	return &i
}

// Why returns what a reason means, one of wire.Reason…; empty: it is none of them.
func Why(reason string) string { return reasons[reason] }

// reasons are what each wire.Reason… means.
var reasons = map[string]string{
	wire.ReasonNew:      "nothing of the prompt is cached anywhere, as far as is known",
	wire.ReasonSticky:   "the conversation is cached there",
	wire.ReasonMoved:    "it is cached elsewhere, but done sooner there",
	wire.ReasonFallback: "by load alone: the body was not read, or no endpoint is ready",
}
