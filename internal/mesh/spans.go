package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"millrace.dev/millrace/internal/traces"
)

// spans is where the programs send their spans.
type spans struct {
	target string           // "otlp://host:port"; empty: nowhere
	file   *traces.Receiver // writes the user's file; nil: none was asked for
	ln     net.Listener     // nil without file
}

// tracesFile is the absolute path of the file of spans; empty: there is none.
func (o Options) tracesFile() string {
	if o.Traces == "" || strings.Contains(o.Traces, "://") {
		return ""
	}
	path, err := filepath.Abs(o.Traces)
	if err != nil {
		return o.Traces
	}
	return path
}

// openTraces reads the flag -traces: "otlp://host:port", a file, or nothing.
func openTraces(to string) (spans, error) {
	if to == "" || strings.Contains(to, "://") {
		return spans{target: to}, nil
	}
	file, err := traces.Open(to)
	if err != nil {
		return spans{}, fmt.Errorf("traces: %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return spans{}, err
	}
	return spans{target: "otlp://" + ln.Addr().String(), file: file, ln: ln}, nil
}

// during receives spans while run runs: the programs send their last ones when
// they are stopped.
func (s spans) during(ctx context.Context, run func(context.Context) error) error {
	if s.file == nil {
		return run(ctx)
	}
	recv, stop := context.WithCancel(context.WithoutCancel(ctx))
	received := make(chan error, 1)
	go func() { received <- s.file.Serve(recv, s.ln) }()
	err := run(ctx)
	stop()
	return errors.Join(err, <-received)
}
