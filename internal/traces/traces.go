// Package traces receives OpenTelemetry spans over OTLP/gRPC and writes them to
// a file, one ResourceSpans in OTLP's JSON form a line.
//
// Called by `millrace up -traces FILE`, so that a person can read a trace
// without a collector. Its one rule: what it writes is bounded, and trouble with
// the file never reaches the programs that send.
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

// Receiver writes the spans that it gets to a file.
type Receiver struct {
	collector.UnimplementedTraceServiceServer

	// Constant after Open.
	path  string
	limit int64 // bytes of the file

	// mu guards the fields below.
	mu   sync.Mutex
	file *os.File
	size int64
	err  error // the first that lost spans
}

// Open makes the file anew and returns its receiver.
func Open(path string) (*Receiver, error) {
	r := &Receiver{path: path, limit: maxFile}
	var err error
	r.file, err = create(path)
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
	return errors.Join(r.err, r.file.Close())
}

// Export takes the spans of one call. It always succeeds: a program must not
// keep spans for us because our disk is full.
func (r *Receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, spans := range req.GetResourceSpans() {
		line, err := Line(spans)
		if err == nil {
			err = r.writeLocked(line)
		}
		if r.err == nil {
			r.err = err
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// writeLocked appends one line, in one piece.
func (r *Receiver) writeLocked(line []byte) error {
	if r.size+int64(len(line)) > r.limit {
		if err := r.rotateLocked(); err != nil {
			return err
		}
	}
	n, err := r.file.Write(line)
	r.size += int64(n)
	return err
}

func (r *Receiver) rotateLocked() error {
	if err := os.Rename(r.path, r.path+".old"); err != nil {
		return err
	}
	next, err := create(r.path)
	if err != nil {
		return err
	}
	old := r.file
	r.file, r.size = next, 0
	return old.Close()
}
