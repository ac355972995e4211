package supervise

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/trust"
)

// Peers are asked for a status every peerInterval and count as silent after
// peerSilent: three intervals by the contract, and some for a busy machine.
const (
	peerInterval = 250 * time.Millisecond
	peerSilent   = 1500 * time.Millisecond
)

// peer watches one other engine of the replica.
type peer struct {
	stage   uint32
	replica string
	stop    context.CancelFunc
	done    chan struct{}

	// mu guards the fields below.
	mu       sync.Mutex
	last     *enginepb.Status // the newest one; nil: none yet
	received time.Time
	epoch    uint64        // of the last status of this stage of this replica
	fault    string        // why the last status was refused; empty: it was not
	cpu      time.Duration // used by its processes
	active   time.Time     // when cpu last changed
}

// watch keeps a Watch stream open until ctx ends, and calls changed after each
// status that says something new of the peer's state.
func (p *peer) watch(ctx context.Context, address string, security grpc.DialOption, changed func()) {
	defer close(p.done)
	conn, err := grpc.NewClient("passthrough:///"+address, security,
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		p.stream(ctx, enginepb.NewEngineClient(conn), changed)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stream reads one stream to its end. A silent one is given up, so that a peer
// that was cut off without a word is dialled again.
func (p *peer) stream(ctx context.Context, client enginepb.EngineClient, changed func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &enginepb.WatchRequest{Interval: durationpb.New(peerInterval)}, grpc.WaitForReady(true))
	if err != nil {
		return
	}
	silence := time.AfterFunc(10*peerSilent, cancel)
	defer silence.Stop()
	for {
		s, err := stream.Recv()
		if err != nil {
			return
		}
		if err := trust.Message(s); err != nil {
			p.refuse(err)
			return
		}
		silence.Reset(10 * peerSilent)
		if p.receive(s, time.Now()) {
			changed()
		}
	}
}

// receive stores a status and reports whether it changes what view says.
func (p *peer) receive(s *enginepb.Status, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := p.last == nil || p.last.GetState() != s.GetState() || p.last.GetEpoch() != s.GetEpoch() || now.Sub(p.received) > peerSilent
	p.last, p.received, p.fault = s, now, ""
	var cpu time.Duration
	for _, c := range s.GetProcesses() {
		cpu += c.GetCpu().AsDuration()
	}
	if cpu != p.cpu {
		p.cpu, p.active = cpu, now
	}
	if p.oursLocked() {
		p.epoch = s.GetEpoch()
	}
	return news
}

// refuse remembers a status that breaks the contract.
func (p *peer) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = err.Error()
}

func (p *peer) oursLocked() bool {
	a := p.last.GetAssignment()
	return a.GetReplica() == p.replica && a.GetStage() == p.stage
}

// forgive lets a peer speak again before it counts as silent, after a pause of
// our own: what it said meanwhile may still be unread.
func (p *peer) forgive(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if grace := now.Add(peerInterval - peerSilent); p.last != nil && p.received.Before(grace) {
		p.received = grace
	}
}

// view is what the machine sees of the peer.
func (p *peer) view(now time.Time) Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := Peer{Epoch: p.epoch, Idle: now.Sub(p.active)}
	switch {
	case p.fault != "":
		v.Why = p.fault
	case p.last == nil:
		v.Why = "has not reported yet"
	case now.Sub(p.received) > peerSilent:
		v.Why = "silent"
	case !p.oursLocked():
		v.Why = "serves something else"
	case p.last.GetState() == enginepb.State_DRAINING: // its shard works until we have ended
	case p.last.GetState() != enginepb.State_READY:
		v.Why = p.last.GetReason()
	}
	return v
}
