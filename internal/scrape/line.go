package scrape

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"millrace.dev/millrace/internal/wire"
)

const readBuffer = 4 << 10 // bytes; what is larger is read past it

var dialer = net.Dialer{KeepAlive: time.Minute}

// lines are the open connections, one a server. net/http's own client reads and
// writes each in goroutines of its own; to wake these costs more than the page.
type lines struct {
	// mu guards the fields below.
	mu     sync.Mutex
	idle   map[string]*line // by "host:port"
	swept  time.Time        // when the ones too old were looked for
	closed bool
}

// line is a connection.
type line struct {
	conn  net.Conn
	since time.Time // when it was last used
}

// talk is the buffers of a question and its answer. Few are needed at a time, whatever the
// number of connections.
type talk struct {
	in  *bufio.Reader
	out bytes.Buffer
}

var talks = sync.Pool{New: func() any { return &talk{in: bufio.NewReaderSize(nil, readBuffer)} }}

// get fetches one page and returns the status, also with an error.
func (l *lines) get(ctx context.Context, r *http.Request, buf []byte) (status int, page []byte, err error) {
	old := l.take(r.URL.Host)
	if old != nil {
		status, page, err = l.ask(ctx, old, r, buf)
		if !stale(err) || status != 0 || ctx.Err() != nil {
			return status, page, err
		}
	}
	conn, err := dialer.DialContext(ctx, "tcp", address(r))
	if err != nil {
		return 0, buf, err
	}
	return l.ask(ctx, &line{conn: conn}, r, buf)
}

// closedIdle is how net/http names, in an error that it does not export, a connection that
// the server closed before the request was written.
const closedIdle = "http: server closed idle connection"

// stale is whether the server has closed a connection, as it may with idle ones.
func stale(err error) bool {
	return err != nil && err.Error() == closedIdle || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// address is where the server of r listens.
func address(r *http.Request) string {
	if r.URL.Port() == "" {
		return net.JoinHostPort(r.URL.Hostname(), "80")
	}
	return r.URL.Host
}

// ask sends r over v and reads the answer. v is kept if it can be used again.
func (l *lines) ask(ctx context.Context, v *line, r *http.Request, buf []byte) (int, []byte, error) {
	again := false
	defer func() {
		if !again {
			_ = v.conn.Close()
		}
	}()
	deadline, _ := ctx.Deadline()
	_ = v.conn.SetDeadline(deadline)
	ended := context.AfterFunc(ctx, func() { _ = v.conn.SetDeadline(time.Unix(1, 0)) })
	defer ended()
	t := talks.Get().(*talk)
	defer func() {
		t.in.Reset(nil)
		talks.Put(t)
	}()
	t.in.Reset(v.conn)
	t.out.Reset()
	if err := r.Write(&t.out); err != nil {
		return 0, buf, err
	}
	if _, err := v.conn.Write(t.out.Bytes()); err != nil {
		return 0, buf, err
	}
	resp, err := http.ReadResponse(t.in, r)
	if err != nil {
		return 0, buf, err
	}
	buf, err = readPage(resp, buf)
	if err == nil && !resp.Close && t.in.Buffered() == 0 && ended() {
		again = l.put(r.URL.Host, v)
	}
	return resp.StatusCode, buf, err
}

// take returns a connection that is idle, and that its server keeps, or nil.
func (l *lines) take(host string) *line {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.idle[host]
	delete(l.idle, host)
	if v != nil && time.Since(v.since) > wire.ClientIdle {
		_ = v.conn.Close()
		return nil
	}
	return v
}

// put keeps a connection, and closes those that nobody has used for long: their
// servers are no longer asked. It returns whether it has taken it.
func (l *lines) put(host string, v *line) bool {
	now := time.Now()
	v.since = now
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.idle[host] != nil {
		return false
	}
	l.idle[host] = v
	if now.Sub(l.swept) > wire.ClientIdle/2 {
		l.swept = now
		for host, v := range l.idle {
			if now.Sub(v.since) > wire.ClientIdle {
				_ = v.conn.Close()
				delete(l.idle, host)
			}
		}
	}
	return true
}

func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for host, v := range l.idle {
		_ = v.conn.Close()
		delete(l.idle, host)
	}
}
