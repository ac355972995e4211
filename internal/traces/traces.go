// Package traces receives OpenTelemetry spans over OTLP/gRPC and writes them to
// a file, one ResourceSpans in OTLP's JSON form a line.
//
// Called by `millrace up -traces FILE`, so that a person can read a trace
// without a collector, and by `millrace trace`, which shows one. Its one rule: what it writes is
// bounded, and trouble with the files never reaches the programs that send.
package traces

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"millrace.dev/millrace/internal/regular"
)

const (
	// maxFile bounds the file, in bytes. A full one is kept once, as NAME.old.
	maxFile = 128 << 20
	// maxMessage bounds what one call may carry, in bytes.
	maxMessage = 8 << 20
	// stopWait is how long the last calls may take at the end.
	stopWait = time.Second
)

// Kept is the name of the file beside the one at path that has the traces that were worth
// keeping, whatever came after them.
func Kept(path string) string { return path + ".kept" }

// output is a file that is kept once more when it is full.
type output struct {
	path  string
	limit int64 // bytes of the file
	file  *os.File
	size  int64
}

// Receiver writes the spans that it gets to a file.
type Receiver struct {
	collector.UnimplementedTraceServiceServer

	// mu guards the fields below.
	mu   sync.Mutex
	all  output
	kept output
	tail tail
	err  error // the first that lost spans
}

// Open makes the file anew, and that of Kept, and returns their receiver.
func Open(path string) (*Receiver, error) {
	r := &Receiver{
		all: output{path: path, limit: maxFile}, kept: output{path: Kept(path), limit: maxKept},
		tail: tail{open: map[string]*pending{}},
	}
	var err error
	if r.all.file, err = create(path); err != nil {
		return nil, err
	}
	r.kept.file, err = create(r.kept.path)
	return r, err
}

func create(path string) (*os.File, error) {
	return regular.Append(path, os.O_TRUNC, 0o644)
}

// Serve receives on ln until ctx ends, then closes the file. Its error is the
// first one that lost spans.
func (r *Receiver) Serve(ctx context.Context, ln net.Listener) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	collector.RegisterTraceServiceServer(srv, r)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		hard := time.AfterFunc(stopWait, srv.Stop)
		defer hard.Stop()
		srv.GracefulStop()
	})
	err := srv.Serve(ln)
	if !stop() {
		<-stopped
	}
	return errors.Join(err, r.close())
}

func (r *Receiver) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keepLocked(time.Now(), true)
	return errors.Join(r.err, r.all.file.Close(), r.kept.file.Close())
}

// Export takes the spans of one call. It always succeeds: a program must not
// keep spans for us because our disk is full.
func (r *Receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for _, spans := range req.GetResourceSpans() {
		line, err := Line(spans)
		if err == nil {
			err = r.all.write(line)
		}
		r.lostLocked(err)
		r.tail.add(spans, now)
	}
	r.keepLocked(now, false)
	return &collector.ExportTraceServiceResponse{}, nil
}

// keepLocked writes the traces that are worth keeping, of those that are whole.
func (r *Receiver) keepLocked(now time.Time, end bool) {
	for _, line := range r.tail.judge(now, end) {
		r.lostLocked(r.kept.write(line))
	}
}

func (r *Receiver) lostLocked(err error) {
	if r.err == nil {
		r.err = err
	}
}

// write appends one line, in one piece.
func (o *output) write(line []byte) error {
	if o.size+int64(len(line)) > o.limit {
		if err := o.rotate(); err != nil {
			return err
		}
	}
	n, err := o.file.Write(line)
	o.size += int64(n)
	return err
}

func (o *output) rotate() error {
	if err := os.Rename(o.path, o.path+".old"); err != nil {
		return err
	}
	next, err := create(o.path)
	if err != nil {
		return err
	}
	old := o.file
	o.file, o.size = next, 0
	return old.Close()
}
