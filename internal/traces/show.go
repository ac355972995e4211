package traces

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"
)

// late is how long spans may still be on their way to the file: programs send them every 200 ms,
// Envoy every 5 s.
const late = 6 * time.Second

// readEvery is how often the file is read again meanwhile.
const readEvery = 250 * time.Millisecond

// Show writes the waterfall of a trace in the file at path, as JSON or for a person. It waits
// for spans that may still be on their way.
func Show(ctx context.Context, path, trace string, asJSON bool, out io.Writer) error {
	spans, err := await(ctx, path, trace)
	if err != nil {
		return err
	}
	w := Of(trace, spans)
	if !asJSON {
		_, err = io.WriteString(out, w.String())
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(w)
}

// await returns the spans once the gateway's, which come last, are there, or what there is.
func await(ctx context.Context, path, trace string) ([]Span, error) {
	for deadline := time.Now().Add(late); ; {
		spans, err := Read(path, trace)
		whole := slices.ContainsFunc(spans, func(s Span) bool { return s.Parent == "" || s.Service == "envoy" })
		if err != nil && (!errors.Is(err, ErrNoTrace) || errors.Is(err, fs.ErrNotExist)) || whole || time.Now().After(deadline) {
			return spans, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(readEvery):
		}
	}
}
