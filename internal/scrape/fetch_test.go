package scrape

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/wire"
)

func request(t testing.TB, url string) *http.Request {
	t.Helper()
	r, err := NewRequest(secret.URL(url))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGet(t *testing.T) {
	text := page(t, "vllm.txt")
	hang := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) })
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxPage+1)) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "9")
		_, _ = w.Write([]byte("cut"))
	})
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { <-hang })
	s := httptest.NewServer(mux)
	defer s.Close()
	defer close(hang)
	c := NewClient()
	defer c.Close()

	for coding, pack := range map[string]func(io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z },
	} {
		send := func(w http.ResponseWriter, text []byte) {
			w.Header().Set("Content-Encoding", coding)
			z := pack(w)
			_, _ = z.Write(text)
			_ = z.Close()
		}
		mux.HandleFunc("/"+coding, func(w http.ResponseWriter, _ *http.Request) { send(w, text) })
		mux.HandleFunc("/"+coding+"/bomb", func(w http.ResponseWriter, _ *http.Request) { send(w, make([]byte, maxPage+1)) })
		if b, err := c.Get(t.Context(), request(t, s.URL+"/"+coding), nil); err != nil || !bytes.Equal(b, text) {
			t.Errorf("%s: %d bytes, %v", coding, len(b), err)
		}
		if _, err := c.Get(t.Context(), request(t, s.URL+"/"+coding+"/bomb"), nil); err == nil {
			t.Errorf("%s: took a page without end", coding)
		}
	}
	mux.HandleFunc("/br", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		_, _ = w.Write(text)
	})
	if _, err := c.Get(t.Context(), request(t, s.URL+"/br"), nil); err == nil {
		t.Error("took a page that it can't read")
	}
	var buf []byte
	for range 3 {
		b, err := c.Get(t.Context(), request(t, s.URL+"/metrics"), buf)
		if err != nil || !bytes.Equal(b, text) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		buf = b
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, request(t, s.URL+"/hang"), nil); !errors.Is(err, ErrSilent) {
		t.Errorf("a server that hangs: %v", err)
	}
	if _, err := c.Get(t.Context(), request(t, s.URL+"/nothing"), nil); !errors.Is(err, StatusError(404)) {
		t.Errorf("no such page: %v", err)
	}
	if _, err := c.Get(t.Context(), request(t, s.URL+"/cut"), nil); !errors.Is(err, ErrGone) {
		t.Errorf("cut: %v", err)
	}
	if _, err := c.Get(t.Context(), request(t, s.URL+"/huge"), nil); err == nil {
		t.Error("took a page without end")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := c.Get(t.Context(), request(t, "http://"+ln.Addr().String()), nil); !errors.Is(err, ErrGone) {
		t.Errorf("nobody listens: %v", err)
	}
}

// TestGetOverAConnectionThatWasClosed has the server close what it said it would
// keep: the next page comes over a new connection. A cut answer is no such case.
func TestGetOverAConnectionThatWasClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	answers := make(chan string)
	go func() {
		for answer := range answers {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4<<10))
			_, _ = conn.Write([]byte(answer))
			conn.Close()
		}
	}()
	defer close(answers)
	c := NewClient()
	defer c.Close()
	r := request(t, "http://"+ln.Addr().String()+"/metrics")
	for range 3 {
		answers <- "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if b, err := c.Get(t.Context(), r, nil); err != nil || string(b) != "ok" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	answers <- "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"
	if _, err := c.Get(t.Context(), r, nil); !errors.Is(err, ErrGone) {
		t.Errorf("cut: %v", err)
	}
}

// TestGetTriesASecondConnection has servers close a connection, new as it is, before they
// have answered: one says nothing about the server, two do.
func TestGetTriesASecondConnection(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve func(*httptest.Server)
	}{{"plain text", (*httptest.Server).Start}, {"TLS", (*httptest.Server).StartTLS}} {
		t.Run(tt.name, func(t *testing.T) {
			var closing atomic.Int32 // connections to close
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if closing.Add(-1) >= 0 {
					panic(http.ErrAbortHandler)
				}
				_, _ = io.WriteString(w, "ok")
			}))
			s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			tt.serve(s)
			defer s.Close()
			for _, broken := range []int32{1, 2} {
				c := NewClientTLS(func() (*tls.Config, error) { return &tls.Config{InsecureSkipVerify: true}, nil })
				closing.Store(broken)
				_, err := c.Get(t.Context(), request(t, s.URL), nil)
				if broken == 1 && err != nil || broken == 2 && !errors.Is(err, ErrGone) {
					t.Errorf("%d connections closed: %v", broken, err)
				}
				c.Close()
			}
		})
	}
}

func TestGetGivesUpWithItsContext(t *testing.T) {
	asked, end := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(asked); <-end }))
	defer s.Close()
	defer close(end)
	c := NewClient()
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := c.Get(ctx, request(t, s.URL), nil); err == nil {
		t.Error("no error")
	}
}

// TestLinesAreKeptForAWhile closes connections to servers that nobody asks any more.
func TestLinesAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lines{idle: map[string]*line{}}
		gone, other := net.Pipe()
		defer other.Close()
		l.put("old:1", &line{conn: gone})
		time.Sleep(wire.ClientIdle + time.Second)
		l.put("new:1", &line{conn: other})
		if l.take("old:1") != nil || l.take("new:1") == nil {
			t.Error("kept what is old, or dropped what is new")
		}
		l.close()
		if l.put("new:1", &line{conn: other}) {
			t.Error("took a connection after its end")
		}
	})
}

// BenchmarkGet is what a page of 23 KB costs from the request to the sample. The
// server in this process, which answers as cheaply as can be, is in the CPU time.
func BenchmarkGet(b *testing.B) {
	text := page(b, "vllm.txt")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go serve(ln, text)
	c := NewClient()
	defer c.Close()
	r := request(b, "http://"+ln.Addr().String()+"/metrics")
	var buf []byte
	before := cpu(b)
	for b.Loop() {
		if buf, err = c.Get(b.Context(), r, buf); err != nil {
			b.Fatal(err)
		}
		if s := vllm.Scan(buf); s.Running != 7 {
			b.Fatalf("%+v", s)
		}
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e3, "cpu-µs/op")
}

// serve writes a prepared answer for whatever it reads.
func serve(ln net.Listener, text []byte) {
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(text))+"\r\n\r\n"), text...)
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			b := make([]byte, 4<<10)
			for {
				if _, err := conn.Read(b); err != nil {
					return
				}
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// cpu is the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
