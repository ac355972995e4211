package kvevents

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/internal/blocks"
)

// publisher is the other side of a connection, as ZeroMQ's PUB socket is.
type publisher struct {
	t    *testing.T
	conn net.Conn
}

// greet shakes hands and takes the subscription.
func greet(t *testing.T, conn net.Conn, topic string) *publisher {
	t.Helper()
	p := &publisher{t, conn}
	p.write(readyPeer())
	p.read(64 + 2 + 25)
	if got := p.read(3 + len(topic)); got[0] != 0 || string(got[3:]) != topic {
		t.Fatalf("subscription %q, want one to %q", got, topic)
	}
	return p
}

func (p *publisher) write(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) read(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(p.conn, b); err != nil {
		p.t.Fatal(err)
	}
	return b
}

// frame is a part of a message.
func frame(flags byte, body []byte) []byte {
	head := binary.BigEndian.AppendUint64([]byte{flags | flagLong}, uint64(len(body)))
	return append(head, body...)
}

// say publishes a payload, and waits until it was taken in: what follows it is a PING.
func (p *publisher) say(seq uint64, payload []byte) {
	p.t.Helper()
	p.write(frame(flagMore, []byte("kv")))
	p.write(frame(flagMore, binary.BigEndian.AppendUint64(nil, seq)))
	p.write(frame(0, payload))
	p.ping()
}

func (p *publisher) ping() {
	p.t.Helper()
	p.write(append([]byte{flagCommand, 9}, "\x04PING\x00\x10ab"...))
	if got := p.read(9); string(got[2:]) != "\x04PONGab" {
		p.t.Fatalf("%q for a PING", got)
	}
}

// ear is a Follower that runs.
type ear struct {
	*Follower
	blocks  *blocks.Set
	changes chan Change
	reg     *prometheus.Registry
	warned  atomic.Int64 // times that something was logged as a warning
}

// Write is that of what is logged.
func (e *ear) Write(b []byte) (int, error) {
	e.warned.Add(1)
	return len(b), nil
}

func follow(t *testing.T, s Source) *ear {
	t.Helper()
	e := &ear{blocks: new(blocks.Set), changes: make(chan Change, 16), reg: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(e, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e.Follower = New(s, e.blocks, func(c Change) { e.changes <- c }, NewMetrics("extproc", e.reg), log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if k, _ := e.blocks.Knowledge(); k != blocks.Nothing {
			t.Errorf("knowledge %d after the end", k)
		}
	})
	return e
}

// knows checks what is known.
func (e *ear) knows(t *testing.T, when string, want blocks.Knowledge, blocks int) {
	t.Helper()
	if k, _ := e.blocks.Knowledge(); k != want || e.blocks.Len() != blocks {
		t.Errorf("%s: knowledge %d of %d blocks, want %d of %d", when, k, e.blocks.Len(), want, blocks)
	}
}

// server is where a Follower connects to.
func server(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func accept(t *testing.T, ln net.Listener, topic string) *publisher {
	t.Helper()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return greet(t, conn, topic)
}

func TestFollow(t *testing.T) {
	ln := server(t)
	e := follow(t, Source{Connect: ln.Addr().String(), Topic: "kv"})
	p := accept(t, ln, "kv")
	p.ping()
	e.knows(t, "connected", blocks.Parts, 0)
	p.say(0, payload(t, "stored"))
	e.knows(t, "the first word", blocks.Whole, 6)
	p.say(1, payload(t, "adapter"))
	e.knows(t, "an adapter's blocks are others", blocks.Whole, 12)
	p.say(2, payload(t, "salt"))
	e.knows(t, "a salt's blocks are others", blocks.Whole, 18)
	p.say(4, payload(t, "stored"))
	e.knows(t, "a message is missing", blocks.Parts, 6)
	p.say(5, payload(t, "cleared"))
	e.knows(t, "all is cleared, and six are stored", blocks.Whole, 6)
	p.say(6, []byte("not a batch"))
	e.knows(t, "a message without sense", blocks.Parts, 0)
	p.say(7, payload(t, "cleared"))
	p.conn.Close()
	if c := <-e.changes; c != Lost {
		t.Errorf("change %d, want Lost", c)
	}
	e.knows(t, "the publisher is gone", blocks.Nothing, 0)

	p = accept(t, ln, "kv")
	p.say(0, payload(t, "stored"))
	if c := <-e.changes; c != Restarted {
		t.Errorf("change %d, want Restarted", c)
	}
	e.knows(t, "a new publisher", blocks.Whole, 6)
	if n := testutil.CollectAndCount(e.reg); n != 5 {
		t.Errorf("%d metrics", n)
	}
	if _, err := testutil.GatherAndLint(e.reg); err != nil {
		t.Error(err)
	}
}

// TestFollowWhoMakesNoSense follows a publisher that sends what nobody understands, as
// one of another version may: once in the log, and as long as it does so.
func TestFollowWhoMakesNoSense(t *testing.T) {
	ln := server(t)
	e := follow(t, Source{Connect: ln.Addr().String()})
	p := accept(t, ln, "")
	for seq := range uint64(50) {
		p.say(seq, []byte("not a batch"))
	}
	if n := e.warned.Load(); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
	if err := e.Fault(); err == nil || !strings.Contains(err.Error(), "message refused: ") {
		t.Errorf("fault %v, want that messages are refused", err)
	}
	p.say(50, payload(t, "cleared"))
	if err := e.Fault(); err != nil {
		t.Errorf("fault %v after a message that is understood", err)
	}
	p.say(51, []byte("not a batch"))
	if n := e.warned.Load(); n != 2 {
		t.Errorf("%d warnings, want another", n)
	}
}

// TestFollowGroups has engines with caches of several kinds. What is known whole is what can be
// placed, if anything can.
func TestFollowGroups(t *testing.T) {
	stored := func(group any, kind any, blocks int) dict {
		names, tokens := list{}, make(list, 32)
		for i := range blocks {
			names = append(names, 100+i)
		}
		for i := range tokens {
			tokens[i] = i
		}
		return dict{"type": "BlockStored", "block_hashes": names, "parent_block_hash": nil, "token_ids": tokens, "block_size": 16, "medium": "GPU", "group_idx": group, "kv_cache_spec_kind": kind}
	}
	removed := func(group any) dict {
		return dict{"type": "BlockRemoved", "block_hashes": list{100, 101}, "medium": "GPU", "group_idx": group}
	}
	mamba, full := stored(0, "mamba", 1), stored(3, "full_attention", 2)
	later := dict{"type": "BlockMigrated", "block_hashes": "elsewhere"}
	tests := []struct {
		name   string
		events []list // of messages
		want   blocks.Knowledge
		n      int
		fault  string // empty: none
	}{
		{"attention alone", []list{{stored(0, "full_attention", 2)}}, blocks.Whole, 2, ""},
		{"attention in the last group", []list{{full}}, blocks.Whole, 2, ""},
		{"states alone", []list{{mamba}}, blocks.Parts, 0, `group of kind "mamba"`},
		{"states of a release that names no kinds", []list{{stored(0, nil, 1)}}, blocks.Parts, 0, "1 blocks of 16 tokens, and 32 tokens"},
		{"states, then attention", []list{{mamba}, {full}, {mamba}}, blocks.Whole, 2, ""},
		{"attention and states in a message", []list{{full, mamba}}, blocks.Whole, 2, ""},
		{"a kind to come", []list{{stored(1, "rwkv9", 2), later}}, blocks.Parts, 0, `group of kind "rwkv9"`},
		{"a type of event to come", []list{{later, full}}, blocks.Whole, 2, ""},
		{"what is removed from another group", []list{{full, mamba}, {removed(0)}}, blocks.Whole, 2, ""},
		{"what is removed from the group", []list{{full, mamba}, {removed(3)}}, blocks.Whole, 0, ""},
		{"two groups of attention, and the other one is evicted", []list{{full, stored(4, "mla_attention", 2)}, {removed(4)}}, blocks.Whole, 2, ""},
		{"two groups of attention, and the first is evicted", []list{{full, stored(4, "mla_attention", 2)}, {removed(3)}}, blocks.Whole, 0, ""},
		{"all is cleared, but what can be placed is not known yet", []list{{mamba}, {dict{"type": "AllBlocksCleared"}}}, blocks.Parts, 0, `group of kind "mamba"`},
		{"cleared", []list{{full, mamba}, {dict{"type": "AllBlocksCleared"}}}, blocks.Whole, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ln := server(t)
			e := follow(t, Source{Connect: ln.Addr().String()})
			p := accept(t, ln, "")
			for seq, events := range tt.events {
				p.say(uint64(seq), packed(t, list{1.5, events, 0}))
			}
			e.knows(t, "at the end", tt.want, tt.n)
			if err := e.Fault(); (err != nil) != (tt.fault != "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("fault %v, want %q", err, tt.fault)
			}
			if e.warned.Load() > 0 {
				t.Error("a warning, though nothing is wrong")
			}
		})
	}
}

// TestFollowLate begins amid what a publisher says: what was said before is not known.
func TestFollowLate(t *testing.T) {
	ln := server(t)
	e := follow(t, Source{Connect: ln.Addr().String()})
	p := accept(t, ln, "")
	p.say(41, payload(t, "stored"))
	e.knows(t, "amid", blocks.Parts, 6)
	p.conn.Close()
	<-e.changes
	p = accept(t, ln, "")
	p.say(42, payload(t, "stored"))
	e.knows(t, "the same publisher again", blocks.Parts, 6)
	select {
	case c := <-e.changes:
		t.Errorf("change %d, though the engine goes on", c)
	default:
	}
}

// TestListen has two publishers, of two ranks, come to a Follower.
func TestListen(t *testing.T) {
	ln := server(t)
	address := ln.Addr().String()
	ln.Close() // it was a free one
	e := follow(t, Source{Listen: address})
	call := func() *publisher {
		for range 100000 { // until it listens
			conn, err := net.Dial("tcp", address)
			if err == nil {
				t.Cleanup(func() { conn.Close() })
				return greet(t, conn, "")
			}
		}
		t.Fatal("it does not listen")
		return nil
	}
	a := call()
	a.say(0, payload(t, "stored"))
	e.knows(t, "one", blocks.Whole, 6)
	b := call()
	b.ping()
	e.knows(t, "another, who has said nothing", blocks.Parts, 6)
	second := packed(t, list{1, list{dict{
		"type": "BlockStored", "block_hashes": list{5}, "parent_block_hash": nil, "token_ids": make32(), "block_size": 32,
	}}, 1})
	b.say(0, second)
	e.knows(t, "two ranks", blocks.Whole, 7)
	b.say(1, packed(t, list{1, list{dict{"type": "AllBlocksCleared"}}, 1}))
	e.knows(t, "the second rank is empty", blocks.Whole, 6)
	a.conn.Close()
	<-e.changes
	b.ping()
	e.knows(t, "the first has gone", blocks.Parts, 0)
	if err := e.Fault(); err != nil {
		t.Errorf("fault %v, though one is connected", err)
	}
}

func make32() list {
	l := make(list, 32)
	for i := range l {
		l[i] = i
	}
	return l
}

// tape is a connection whose other side has sent all in advance, and reads nothing.
type tape struct {
	net.Conn
	in io.Reader
}

func (c tape) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c tape) Write(b []byte) (int, error) { return len(b), nil }
func (c tape) SetDeadline(time.Time) error { return nil }

// TestWhoIsNoPublisher is refused, and says so.
func TestWhoIsNoPublisher(t *testing.T) {
	old := greeting()
	old[10] = 1
	curve := greeting()
	copy(curve[12:], "CURVE")
	tests := []struct {
		name, want string
		says       []byte
	}{
		{"speaks HTTP", "not a ZeroMQ peer", []byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 4))},
		{"is too old", "must be 3 or later", old},
		{"wants secrets", `mechanism "CURVE"`, curve},
		{"is no publisher", "READY of a PUB", append(greeting(), "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REP"...)},
		{"says nothing", "EOF", nil},
		{"says much too much", "not a ZeroMQ peer", append(greeting(), 6, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newPeer(tape{in: bytes.NewReader(tt.says)}, ""); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(bytes.Join([][]byte{frame(flagMore, []byte("kv")), frame(0, []byte("x"))}, nil))
	f.Add([]byte{flagCommand, 9, 4, 'P', 'I', 'N', 'G', 0, 1, 'a', 'b', 0, 0})
	f.Add([]byte{flagLong, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(bytes.Repeat([]byte{flagMore, 0}, 20))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := newPeer(tape{in: bytes.NewReader(append(readyPeer(), in...))}, "t")
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			var parts [][]byte
			if parts, err = p.next(); err == nil && (len(parts) == 0 || len(parts) > maxParts) {
				t.Errorf("%d parts", len(parts))
			}
		}
		if n := p.buf.Cap(); n > 2*len(in)+64<<10 {
			t.Errorf("%d bytes of memory for %d", n, len(in))
		}
	})
}

// readyPeer is what a publisher says before its messages.
func readyPeer() []byte {
	return append(greeting(), "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"...)
}
