package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
)

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// identity returns that of a program of the mesh.
func identity(t *testing.T, a *mtls.Authority, id mtls.ID, log io.Writer) *mtls.Source {
	t.Helper()
	dir := t.TempDir()
	cert, err := a.Issue(id, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f := mtls.Files{Cert: filepath.Join(dir, "me.pem"), Key: filepath.Join(dir, "me.pem"), CA: filepath.Join(dir, "ca.pem")}
	if err := errors.Join(mtls.WriteFile(f.Cert, cert), mtls.WriteFile(f.CA, a.PEM())); err != nil {
		t.Fatal(err)
	}
	s, err := mtls.Load(f, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// node is a tunnel with its shard.
type node struct {
	*Tunnel
	shard net.Listener // the shard's
	addr  string       // of the tunnel
	log   *logBuffer
	stop  func()
}

// start runs a tunnel on a node whose replica's head is on node-a.
func start(t *testing.T, a *mtls.Authority, name string) *node {
	t.Helper()
	n := &node{log: &logBuffer{}}
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	me := identity(t, a, mtls.ID{Role: mtls.Engine, Node: name}, n.log)
	n.shard = listen()
	ln := listen()
	n.addr = ln.Addr().String()
	n.Tunnel = New(Config{
		Identity: me, Shard: n.shard.Addr().String(), Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Head: func() (string, bool) { return "node-a", true },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx, me.Listener(ln)) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.shard.Close()
	})
	t.Cleanup(n.stop)
	return n
}

// replica is an assignment of the head, on a, whose other stage is on b.
func replica(a, b *node) *enginepb.Assignment {
	return &enginepb.Assignment{Stages: []*enginepb.Stage{
		{Node: "node-a", ShardAddress: a.addr}, {Node: "node-b", ShardAddress: b.addr},
	}}
}

// connect returns a connection of the head and the other shard's end of it.
func connect(t *testing.T, a, b *node) (head, shard *net.TCPConn) {
	t.Helper()
	ways, err := a.Ways(replica(a, b))
	if err != nil {
		t.Fatal(err)
	}
	if ways[0] != a.shard.Addr().String() {
		t.Errorf("its own shard is reached at %s", ways[0])
	}
	conn, err := net.Dial("tcp", ways[1])
	if err != nil {
		t.Fatal(err)
	}
	far, err := b.shard.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); far.Close() })
	return conn.(*net.TCPConn), far.(*net.TCPConn)
}

func authority(t *testing.T) *mtls.Authority {
	t.Helper()
	a, err := mtls.NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestBytesGoThroughAndEachDirectionEndsByItself(t *testing.T) {
	ca := authority(t)
	head, shard := connect(t, start(t, ca, "node-a"), start(t, ca, "node-b"))
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = head.Write(sent)
		_ = head.CloseWrite()
	}()
	got, err := io.ReadAll(shard) // to the end of this direction
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes arrive, %v", len(got), err)
	}
	if _, err := shard.Write([]byte("still")); err != nil { // the other one is open
		t.Fatal(err)
	}
	_ = shard.Close()
	if got, err := io.ReadAll(head); string(got) != "still" || err != nil {
		t.Errorf("the head reads %q, %v", got, err)
	}
}

func TestADeathIsOneAtTheOtherEnd(t *testing.T) {
	ca := authority(t)
	tests := map[string]func(head, shard *net.TCPConn, a, b *node) (other *net.TCPConn){
		"the shard": func(head, shard *net.TCPConn, _, _ *node) *net.TCPConn {
			_ = shard.SetLinger(0)
			shard.Close()
			return head
		},
		"the head": func(head, shard *net.TCPConn, _, _ *node) *net.TCPConn {
			_ = head.SetLinger(0)
			head.Close()
			return shard
		},
		"the shard's node": func(head, _ *net.TCPConn, _, b *node) *net.TCPConn { b.stop(); return head },
		"the head's node":  func(_, shard *net.TCPConn, a, _ *node) *net.TCPConn { a.stop(); return shard },
	}
	for name, die := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, ca, "node-a"), start(t, ca, "node-b")
			head, shard := connect(t, a, b)
			other := die(head, shard, a, b)
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
				t.Errorf("the other end reads %v", err)
			}
		})
	}
}

func TestOnlyTheHeadIsLetIn(t *testing.T) {
	ca := authority(t)
	b := start(t, ca, "node-b")
	tests := []struct {
		name string
		id   *mtls.Source
		want string
	}{
		{"another engine", identity(t, ca, mtls.ID{Role: mtls.Engine, Node: "node-c"}, io.Discard), "engine may not ask spiffe://millrace/node/node-b/engine for a shard: it speaks for node node-a"},
		{"the head's nodeagent", identity(t, ca, mtls.ID{Role: mtls.NodeAgent, Node: "node-a"}, io.Discard), "nodeagent may not ask"},
		{"a stranger", identity(t, authority(t), mtls.ID{Role: mtls.Engine, Node: "node-a"}, io.Discard), "unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.id.Client(nil)
			c.VerifyConnection = nil
			conn, err := tls.Dial("tcp", b.addr, c)
			if err == nil {
				defer conn.Close()
				if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
					t.Errorf("it reads %d bytes, %v", n, err)
				}
			}
			if !strings.Contains(b.log.String(), tt.want) {
				t.Errorf("log\n%slacks %s", b.log.String(), tt.want)
			}
		})
	}
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("\x0e hello of llama.cpp's RPC"))
	if got, _ := io.ReadAll(conn); bytes.Contains(got, []byte("RPC")) {
		t.Errorf("plain text reads %q", got)
	}
}

func TestAWayThatIsNeededNoMoreIsClosed(t *testing.T) {
	ca := authority(t)
	a, b := start(t, ca, "node-a"), start(t, ca, "node-b")
	ways, err := a.Ways(replica(a, b))
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Ways(replica(a, b))
	if err != nil || again[1] != ways[1] {
		t.Errorf("the same shard is at %s, then at %s, %v", ways[1], again[1], err)
	}
	if _, err := a.Ways(&enginepb.Assignment{}); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", ways[1]); err == nil {
		conn.Close()
		t.Error("the port is still open")
	}
}

func TestAShardThatIsDownBreaksTheHeadsConnection(t *testing.T) {
	ca := authority(t)
	a, b := start(t, ca, "node-a"), start(t, ca, "node-b")
	b.shard.Close()
	ways, err := a.Ways(replica(a, b))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", ways[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("it reads %d bytes", n)
	}
}
