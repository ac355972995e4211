package obs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestStuckPartsShow holds that a lock that nobody gives back, and a loop that has stopped, make
// a program unhealthy, and that it is healthy again when they continue.
func TestStuckPartsShow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch(slog.New(slog.NewTextHandler(io.Discard, nil)))
		lock := make(chan struct{}, 1)
		w.Add("decisions", func() error { lock <- struct{}{}; <-lock; return nil })
		var stopped atomic.Pointer[error]
		w.Add("loop", func() error {
			if err := stopped.Load(); err != nil {
				return *err
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		page := Admin(prometheus.NewRegistry(), nil, w)
		healthz := func() (int, string) {
			r := httptest.NewRecorder()
			page.ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/healthz", nil))
			return r.Code, r.Body.String()
		}
		expect := func(what string, status int, text string) {
			t.Helper()
			if got, body := healthz(); got != status || !strings.Contains(body, text) {
				t.Errorf("%s: %d %q, want %d with %q", what, got, body, status, text)
			}
		}
		time.Sleep(5 * time.Second)
		expect("at first", 200, "ok")
		lock <- struct{}{}
		time.Sleep(StuckAfter - time.Second)
		expect("a lock that is held for long", 200, "ok")
		time.Sleep(4 * time.Second)
		expect("a lock that nobody gives back", 503, "decisions has not answered for 2")
		<-lock
		time.Sleep(2 * time.Second)
		expect("it was given back", 200, "ok")
		err := errors.New("stands still")
		stopped.Store(&err)
		time.Sleep(2 * time.Second)
		expect("a loop stands still", 503, "loop: stands still")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestStuckProgramsDoNotNotifySystemd: it starts them anew then. Others do.
func TestStuckProgramsDoNotNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	for _, stuck := range []bool{false, true} {
		w := NewWatch(slog.New(slog.NewTextHandler(io.Discard, nil)))
		if stuck {
			w.parts = append(w.parts, &part{name: "x", check: func() error { return nil }, asked: time.Now().Add(-time.Hour)})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		_ = ln.SetReadDeadline(time.Now().Add(map[bool]time.Duration{false: 10 * time.Second, true: 100 * time.Millisecond}[stuck]))
		buf := make([]byte, 64)
		n, err := ln.Read(buf)
		if got := string(buf[:n]); (err == nil) == stuck || !stuck && got != "WATCHDOG=1" {
			t.Errorf("stuck %v: systemd got %q, %v", stuck, got, err)
		}
		cancel()
		<-done
	}
}

// TestWhatCostsMuchIsAskedSeldom holds that a watch costs a program of many metrics little.
func TestWhatCostsMuchIsAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch(slog.New(slog.DiscardHandler))
		var cheap, dear atomic.Int32
		w.Add("cheap", func() error { cheap.Add(1); return nil })
		w.AddSeldom("dear", func() error { dear.Add(1); return nil })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(time.Minute + time.Second/2)
		if n := cheap.Load(); n != 61 {
			t.Errorf("what costs little was asked %d times in a minute, want 61", n)
		}
		if n := dear.Load(); n != 7 {
			t.Errorf("what costs much was asked %d times in a minute, want 7", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
