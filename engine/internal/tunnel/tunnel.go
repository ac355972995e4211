// Package tunnel carries the traffic between the parts of one replica, which is
// plain and without authentication of its own, through mutual TLS from engine to
// engine: shards listen on loopback only, and the head reaches those of other nodes
// through local ports.
//
// Called by engine when it has an identity. Its one rule: a connection ends at both
// ends in the same way, in order or not, so that a replica dies with any of its
// parts as it would without a tunnel.
package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
)

const (
	// connectTimeout bounds a connection with its handshake.
	connectTimeout = 5 * time.Second
	// most bounds the connections that lead to the shard; one more is refused. A
	// shard serves one at a time.
	most = 64
	// chunk is how much is copied at once, in bytes: a few records of TLS.
	chunk = 64 << 10
)

// keepAlive finds a machine that is gone without a word.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Config is what a Tunnel is made of.
type Config struct {
	// Identity is the engine's.
	Identity *mtls.Source
	// Shard is "ip:port" of this node's shard, on loopback.
	Shard string
	// Head returns the node whose engine is the head of the replica of which this
	// one is a part now; false: of none.
	Head func() (node string, ok bool)
	Log  *slog.Logger
}

// Tunnel is both ends on one node.
type Tunnel struct {
	cfg  Config
	open sync.WaitGroup // goroutines

	// mu guards the fields below.
	mu    sync.Mutex
	ways  map[string]*way // by node and address of the other shard
	conns map[net.Conn]bool
	ended bool
}

// way is a local port that leads to one other shard.
type way struct {
	ln    net.Listener
	stage *enginepb.Stage
}

// New returns a tunnel without any way.
func New(cfg Config) *Tunnel {
	return &Tunnel{cfg: cfg, ways: make(map[string]*way), conns: make(map[net.Conn]bool)}
}

// Serve takes the connections of other engines until ctx ends, closes all that lead
// in and out, and waits for their ends. The listener is one of the identity's.
func (t *Tunnel) Serve(ctx context.Context, ln net.Listener) error {
	defer t.end()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	slots := make(chan struct{}, most)
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("shard: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		if !t.start(func() { defer func() { <-slots }(); t.inward(ctx, conn.(*tls.Conn)) }) {
			_ = conn.Close()
		}
	}
}

// start runs do as one of the tunnel's goroutines; false: it has ended.
func (t *Tunnel) start(do func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.open.Go(do)
	return true
}

// end closes everything and waits.
func (t *Tunnel) end() {
	t.mu.Lock()
	t.ended = true
	for _, w := range t.ways {
		_ = w.ln.Close()
	}
	for c := range t.conns {
		abort(c)
	}
	t.mu.Unlock()
	t.open.Wait()
}

// keep has conn closed when the tunnel ends; false: it has ended.
func (t *Tunnel) keep(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.conns[conn] = true
	}
	return !t.ended
}

func (t *Tunnel) forget(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
}

// inward leads another engine to this node's shard, if it is the head's.
func (t *Tunnel) inward(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	if err := t.admit(ctx, conn); err != nil {
		t.cfg.Identity.Refused(conn.RemoteAddr().String(), err)
		return
	}
	d := net.Dialer{Timeout: connectTimeout}
	shard, err := d.DialContext(ctx, "tcp", t.cfg.Shard)
	if err != nil {
		t.cfg.Log.Warn("shard not reached for another engine", "err", err)
		return
	}
	t.join(conn, shard)
}

// admit lets the engine of the replica's head in.
func (t *Tunnel) admit(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	state := conn.ConnectionState()
	id, err := mtls.Peer(&state, time.Now())
	if err != nil {
		return err
	}
	head, ok := t.cfg.Head()
	if !ok {
		return fmt.Errorf("%s asks for a shard; this engine is part of no replica", id)
	}
	return mtls.Allow(id, mtls.Call{Server: t.cfg.Identity.ID(), Method: mtls.Shard, Node: head})
}

// Ways returns for each stage of the assignment the address by which the head
// reaches its shard: of this node its own, of another a local port. Ports that lead
// to shards of an earlier assignment are closed; connections stay with their head.
func (t *Tunnel) Ways(a *enginepb.Assignment) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ways, addrs := make(map[string]*way), make([]string, len(a.GetStages()))
	for i, s := range a.GetStages() {
		if uint32(i) == a.GetStage() {
			addrs[i] = t.cfg.Shard
			continue
		}
		key := s.GetNode() + " " + s.GetShardAddress()
		w := t.ways[key]
		if w == nil {
			var err error
			if w, err = t.digLocked(s); err != nil {
				return nil, err
			}
			t.ways[key] = w
		}
		ways[key], addrs[i] = w, w.ln.Addr().String()
	}
	for key, w := range t.ways {
		if ways[key] == nil {
			_ = w.ln.Close()
		}
	}
	t.ways = ways
	return addrs, nil
}

// errEnded is why no way is opened any more.
var errEnded = errors.New("tunnel: the engine ends")

// digLocked opens the local port of a new way.
func (t *Tunnel) digLocked(s *enginepb.Stage) (*way, error) {
	if t.ended {
		return nil, errEnded
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("tunnel to %s: %w", s.GetNode(), err)
	}
	w := &way{ln: ln, stage: s}
	t.open.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed: nothing leads here any more
			}
			if !t.start(func() { t.outward(w, conn) }) {
				_ = conn.Close()
			}
		}
	})
	return w, nil
}

// outward leads this node's head to the shard of another engine.
func (t *Tunnel) outward(w *way, head net.Conn) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: connectTimeout},
		Config:    t.cfg.Identity.Client(mtls.IsEngineOf(w.stage.GetNode())),
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	far, err := d.DialContext(ctx, "tcp", w.stage.GetShardAddress())
	if err != nil {
		t.cfg.Log.Warn("shard of another node not reached", "node", w.stage.GetNode(), "err", err)
		abort(head)
		return
	}
	t.join(far.(*tls.Conn), head)
}

// half is a connection whose directions end apart.
type half interface {
	net.Conn
	CloseWrite() error
}

// join copies in both directions until both have ended. A direction that ends in
// order ends so at the other side; one that breaks breaks both.
func (t *Tunnel) join(far *tls.Conn, near net.Conn) {
	defer near.Close()
	defer far.Close()
	for _, c := range []net.Conn{far, near} {
		if !t.keep(c) {
			abort(c)
		}
		defer t.forget(c)
	}
	for _, c := range []net.Conn{far.NetConn(), near} {
		if tcp := tcpOf(c); tcp != nil {
			_ = tcp.SetKeepAliveConfig(keepAlive)
		}
	}
	var g sync.WaitGroup
	pump := func(to, from half) {
		if _, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, chunk)); err != nil || to.CloseWrite() != nil {
			abort(far)
			abort(near)
		}
	}
	g.Go(func() { pump(far, near.(half)) })
	g.Go(func() { pump(near.(half), far) })
	g.Wait()
}

// onlyWriter and onlyReader have the buffer used that CopyBuffer is given.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// abort closes a connection so that its peer sees it break.
func abort(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if tcp := tcpOf(c); tcp != nil {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// tcpOf returns the connection of the kernel.
func tcpOf(c net.Conn) *net.TCPConn {
	if w, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = w.NetConn()
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}
