// Package kvevents listens to what inference engines publish of their KV caches over
// ZeroMQ, in the form of vLLM: which blocks of tokens were stored and evicted.
//
// fleet runs a Follower for each endpoint whose events the fleet's file names. Its one
// rule: what is known is what was received without a gap. When a message is missing or
// makes no sense, or a publisher goes, everything that it said is forgotten at once:
// less is known then, but nothing wrong. Blocks that can't be placed are passed over; an
// engine none of whose blocks can be is not one of which all is known.
package kvevents

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"millrace.dev/millrace/internal/blocks"
)

// How connections are made and kept.
const (
	redialFirst, redialMost = 250 * time.Millisecond, 5 * time.Second
	// maxPeers is how many publishers may be connected to one endpoint's listener.
	maxPeers = 64
)

// keepAlive finds out within some seconds that a publisher's machine is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Source is where an endpoint's events come from.
type Source struct {
	// Connect is the "ip:port" at which the publisher listens, Listen the one at which
	// it expects us to. One of them is empty.
	Connect, Listen string
	// Topic is what messages must begin with; empty: all are wanted.
	Topic string
}

// Follower keeps a Target true to what the publishers of one endpoint say.
type Follower struct {
	// Constant after New.
	source  Source
	blocks  *blocks.Names
	changed func(Change)
	metrics *Metrics
	log     *slog.Logger

	// mu guards the fields below.
	mu    sync.Mutex
	lines map[*line]bool // that are connected
	lost  bool           // whether one has gone since the last first word
	fault error          // of listening or connecting; nil: all is well
}

// Change is what a Follower notices of an engine.
type Change uint8

const (
	// Lost is that a publisher has gone: its engine may have, too.
	Lost Change = iota
	// Restarted is that after a loss a publisher has said its first word: its engine
	// has begun anew.
	Restarted
)

// New returns a Follower that keeps target true and calls changed, which must not call
// back.
func New(s Source, target blocks.Target, changed func(Change), m *Metrics, log *slog.Logger) *Follower {
	return &Follower{source: s, blocks: blocks.NewNames(target), changed: changed, metrics: m, log: log, lines: map[*line]bool{}}
}

// Source returns where the events come from.
func (f *Follower) Source() Source { return f.source }

// Tokens returns how many tokens are known to be cached at a time.
func (f *Follower) Tokens() int { return f.blocks.Tokens() }

// Fault returns why nothing is received or understood; nil: all is well.
func (f *Follower) Fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.lines) > 0:
		for l := range f.lines {
			if l.refused != nil {
				return l.refused
			}
			if l.passed != nil && !l.placed {
				return fmt.Errorf("nothing that it stores can be placed: %w", l.passed)
			}
		}
		return nil
	case f.fault != nil:
		return f.fault
	case f.source.Listen != "":
		return fmt.Errorf("nobody has connected to %s", f.source.Listen)
	default:
		return fmt.Errorf("not connected to %s yet", f.source.Connect)
	}
}

func (f *Follower) setFault(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = err
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	defer f.blocks.Forget()
	pause := redialFirst
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if f.source.Listen != "" {
			err = f.listen(ctx)
		} else {
			err = f.connect(ctx)
		}
		f.setFault(err)
		if time.Since(began) > redialMost {
			pause = redialFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, redialMost)
	}
	return nil
}

// connect follows the one publisher that is at an address, until it goes.
func (f *Follower) connect(ctx context.Context) error {
	d := net.Dialer{KeepAliveConfig: keepAlive, Timeout: handshakeWait}
	conn, err := d.DialContext(ctx, "tcp", f.source.Connect)
	if err != nil {
		return err
	}
	return f.serve(ctx, conn)
}

// listen follows the publishers that come.
func (f *Follower) listen(ctx context.Context) error {
	c := net.ListenConfig{KeepAliveConfig: keepAlive}
	ln, err := c.Listen(ctx, "tcp", f.source.Listen)
	if err != nil {
		return err
	}
	f.setFault(nil)
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	own := make(chan struct{}, maxPeers)
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		select {
		case own <- struct{}{}:
		default:
			f.metrics.crowded.Inc()
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			_ = f.serve(ctx, conn) // it has been logged, or counted
			<-own
		})
	}
}

// serve follows one publisher until it goes.
func (f *Follower) serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		f.metrics.crowded.Inc()
		return errPlace
	}
	p, err := newPeer(conn, f.source.Topic)
	if err != nil {
		f.log.Warn("publisher of cache events refused", "peer", conn.RemoteAddr().String(), "error", err)
		return err
	}
	defer p.release()
	l := &line{follower: f}
	f.join(l)
	f.log.Info("publisher of cache events connected", "peer", conn.RemoteAddr().String())
	for err == nil {
		var parts [][]byte
		if parts, err = p.next(); err == nil {
			l.take(parts)
		}
	}
	f.leave(l)
	if ctx.Err() == nil {
		f.log.Info("publisher of cache events gone", "peer", conn.RemoteAddr().String(), "error", err)
		f.changed(Lost)
	}
	return err
}

// line is what one publisher has said.
type line struct {
	follower *Follower
	seq      uint64 // of the last message
	received bool   // whether there was one

	// Guarded by Follower.mu, and changed by the line alone.
	whole   bool  // whether all that it has stored is known, as far as it can be placed
	refused error // why the last message was; nil: it was not
	placed  bool  // whether anything that it has stored could be
	passed  error // why something that it has stored could not be; nil: nothing
	// group is the one whose blocks count: the first that can be placed. Of a model that has
	// several of them, a prompt is cached where it is in all, and they fill alike.
	group int
}

// join takes a publisher in. What it has stored before is not known.
func (f *Follower) join(l *line) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines[l] = true
	f.judgeLocked()
}

// leave forgets what is known: of whom which block is we do not keep.
func (f *Follower) leave(l *line) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.lines, l)
	f.lost = true
	f.forgetLocked()
}

// forgetLocked forgets all blocks, whoever has said so.
func (f *Follower) forgetLocked() {
	f.blocks.Forget()
	for l := range f.lines {
		l.whole = false
	}
	f.judgeLocked()
}

// judgeLocked says how much is known.
func (f *Follower) judgeLocked() {
	k := blocks.Nothing
	if len(f.lines) > 0 {
		k = blocks.Whole
	}
	for l := range f.lines {
		if !l.whole || l.passed != nil && !l.placed {
			k = blocks.Parts
		}
	}
	f.blocks.SetKnown(k)
}

var errMessage = errors.New("not topic, number and events")

// take takes a message in.
func (l *line) take(parts [][]byte) {
	f := l.follower
	f.metrics.batches.Inc()
	if len(parts) != 3 || len(parts[1]) != 8 {
		l.lose("message refused", errMessage)
		return
	}
	seq := binary.BigEndian.Uint64(parts[1])
	first, next := seq == 0, l.received && seq == l.seq+1
	gap := l.received && !next
	l.seq, l.received = seq, true
	if gap {
		l.lose("messages are missing", nil)
	}
	if first {
		l.begin()
	}
	batch := <-batches
	defer func() {
		batch.trim()
		batches <- batch
	}()
	if err := batch.Decode(parts[2]); err != nil {
		l.lose("message refused", err)
		return
	}
	if l.refused != nil {
		l.setRefused(nil)
	}
	for i := range batch.Events {
		l.apply(&batch.Events[i])
	}
}

// begin takes in that the publisher's engine has said nothing before, and so had
// nothing cached.
func (l *line) begin() {
	f := l.follower
	f.mu.Lock()
	l.whole, l.placed, l.passed = true, false, nil
	f.judgeLocked()
	lost := f.lost
	f.lost = false
	f.mu.Unlock()
	if lost {
		f.changed(Restarted)
	}
}

// lose forgets what is known, because something of what was said is not. An engine all
// of whose messages are refused is logged once.
func (l *line) lose(what string, err error) {
	f := l.follower
	f.metrics.gaps.Inc()
	if l.refused == nil {
		f.log.Warn("cache events lost, all blocks forgotten", "why", what, "seq", l.seq, "error", err)
	}
	if err != nil {
		l.setRefused(fmt.Errorf("%s: %w", what, err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked()
}

func (l *line) setRefused(why error) {
	f := l.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	l.refused = why
}

func (l *line) setWhole(whole bool) {
	f := l.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	l.whole = whole
	f.judgeLocked()
}

// apply takes one event in.
func (l *line) apply(e *Event) {
	names := l.follower.blocks
	switch e.Kind {
	case Stored:
		if l.placed && e.Group != l.group {
			return
		}
		if names.Store(&e.Stored) {
			l.place(e.Group)
		} else {
			l.setWhole(false)
		}
	case Passed:
		l.pass(e.Why)
	case Removed:
		if l.placed && e.Group != l.group {
			return // the block of that name that counts is still there
		}
		for _, h := range e.Hashes {
			names.Remove(blocks.ID{Rank: e.Rank, Hash: h})
		}
	case Cleared:
		names.Clear(e.Rank)
		l.setWhole(true)
	}
}

// place takes in that blocks of a group can be placed.
func (l *line) place(group int) {
	if l.placed {
		return
	}
	f := l.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	l.placed, l.group = true, group
	f.judgeLocked()
}

// pass takes in that blocks can't be placed.
func (l *line) pass(why error) {
	f := l.follower
	f.metrics.passed.Inc()
	if l.passed != nil {
		return
	}
	f.log.Info("cache events passed over", "why", why)
	f.mu.Lock()
	defer f.mu.Unlock()
	l.passed = why
	f.judgeLocked()
}
