package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/engine/internal/rendezvous"
)

// Peer is another engine, which may have copies.
type Peer struct {
	node   string
	client enginepb.SnapshotsClient
	conn   *grpc.ClientConn

	// mu guards the fields below.
	mu   sync.Mutex
	away time.Time // until when it is not asked
}

// Dial returns the engine of a node at an address; no connection is made before it is used.
func Dial(node, address string, security grpc.DialOption) (*Peer, error) {
	conn, err := grpc.NewClient(address, security)
	if err != nil {
		return nil, fmt.Errorf("snapshots of node %s: %w", node, err)
	}
	return &Peer{node: node, client: enginepb.NewSnapshotsClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (p *Peer) Close() error { return p.conn.Close() }

const (
	// awayFor is how long a peer is not asked again that has not answered, or serves another model.
	awayFor = 5 * time.Second
	// offerFor bounds how long a peer may take to say whether it wants a snapshot, copyFor how
	// long one may be on its way.
	offerFor = 2 * time.Second
	copyFor  = 5 * time.Minute
)

func (p *Peer) isAway() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.away)
}

// answered takes in what an answer says of the peer.
func (p *Peer) answered(err error) {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.FailedPrecondition, codes.Unimplemented:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.away = time.Now().Add(awayFor)
	}
}

// copying sends one copy after the other.
func (s *Service) copying(ctx context.Context) error {
	for {
		e, ok := s.copies.take(ctx)
		if !ok {
			return nil
		}
		began := time.Now()
		outcome, err := s.copy(ctx, e)
		if ctx.Err() != nil {
			return nil
		}
		s.cfg.Metrics.copied.WithLabelValues(outcome).Inc()
		if outcome == copiedOK {
			s.cfg.Metrics.took(phaseCopy, began)
		}
		if err != nil {
			s.cfg.Log.Debug("snapshot not copied", "err", err)
		}
	}
}

// near returns the peers in the order in which they are asked to keep a conversation: for all of
// its turns the same.
func (s *Service) near(h *enginepb.SnapshotHeader) []*Peer {
	key := strconv.FormatUint(h.GetKeys()[0], 16)
	return slices.SortedFunc(slices.Values(s.cfg.Peers), func(a, b *Peer) int { return rendezvous.Compare(a.node, b.node, key) })
}

// copy has one peer keep a snapshot.
func (s *Service) copy(ctx context.Context, e *entry) (outcome string, err error) {
	outcome = copiedNobody
	for _, p := range s.near(e.h) {
		if p.isAway() {
			continue
		}
		err = s.copyTo(ctx, p, e)
		p.answered(err)
		switch status.Code(err) {
		case codes.OK:
			return copiedOK, nil
		case codes.FailedPrecondition, codes.ResourceExhausted, codes.Unimplemented:
		default:
			outcome = copiedFailed
		}
		if ctx.Err() != nil {
			return outcome, ctx.Err()
		}
	}
	return outcome, err
}

// copyTo sends a peer what it lacks of a snapshot.
func (s *Service) copyTo(ctx context.Context, p *Peer, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, copyFor)
	defer cancel()
	o := &enginepb.OfferRequest{Header: e.h, Bytes: uint64(e.file.Bytes), Sha256: e.file.Sum[:]}
	asking, answered := context.WithTimeout(ctx, offerFor)
	reply, err := p.client.Offer(asking, o)
	answered()
	if err != nil || reply.GetOffset() >= o.Bytes {
		return err
	}
	file, err := s.cfg.Folder.open(e)
	if err != nil {
		return nil // the next turn has taken its place
	}
	defer file.Close()
	at := int64(reply.GetOffset())
	if _, err := file.Seek(at, io.SeekStart); err != nil {
		return err
	}
	stream, err := p.client.Keep(ctx)
	if err != nil {
		return err
	}
	buf := make([]byte, pieceSize)
	for at < e.file.Bytes {
		n, err := file.Read(buf)
		if err != nil {
			return err
		}
		if err := s.limit.WaitN(ctx, n); err != nil {
			return err
		}
		part := &enginepb.KeepPart{Offer: o, Offset: uint64(at), Data: buf[:n]}
		o = nil
		if err := stream.Send(part); err != nil {
			break // what is wrong the other side says
		}
		s.cfg.Metrics.sent.Add(float64(n))
		at += int64(n)
	}
	_, err = stream.CloseAndRecv()
	return err
}

// newLimit bounds what is sent, in bytes per second.
func newLimit(perSecond int64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), pieceSize)
}

// findFor bounds how long peers may take to say what they have.
const findFor = 200 * time.Millisecond

// askFrom is how long a prompt must be worked on, beyond what is known to be had here, for peers to
// be asked what they have of it.
const askFrom = time.Second

// elsewhere fetches what a peer has of a prompt, if that is more than so many tokens, and faster
// than to compute them; nil: it is not.
func (s *Service) elsewhere(ctx context.Context, v *served, keys []uint64, have uint32, prefill float64) (*entry, uint32) {
	f := s.ask(ctx, v, keys)
	if f.peer == nil || f.h.GetTokens() > v.assignment.GetBackend().GetContextTokens() {
		return nil, 0
	}
	p := s.paces()
	p.restore = 1 / (1/p.restore + 1/float64(s.cfg.Rate)) // it comes, and then is restored
	if worth(f.h, f.tokens, have, prefill, p) == 0 {
		return nil, 0
	}
	within, cancel := context.WithTimeout(ctx, computing(f.tokens-have, prefill, f.h))
	defer cancel()
	e, err := s.fetch(within, v, f)
	switch {
	case errors.Is(err, kvfile.ErrTorn):
		s.cfg.Metrics.ignored.WithLabelValues(ignoredTorn).Inc()
	case err != nil && ctx.Err() == nil:
		s.cfg.Metrics.ignored.WithLabelValues(ignoredFailed).Inc()
	}
	if err != nil || e == nil {
		s.cfg.Log.Debug("snapshot not fetched", "peer", f.peer.node, "err", err)
		return nil, 0
	}
	return e, of(e.h, keys)
}

// found is what a peer has of a prompt.
type found struct {
	peer   *Peer
	h      *enginepb.SnapshotHeader
	tokens uint32 // of the prompt
}

// ask asks all peers for the longest snapshot of a prompt with these keys.
func (s *Service) ask(ctx context.Context, v *served, keys []uint64) (best found) {
	ctx, cancel := context.WithTimeout(ctx, findFor)
	defer cancel()
	answers := make(chan found, len(s.cfg.Peers))
	for _, p := range s.cfg.Peers {
		if p.isAway() {
			answers <- found{}
			continue
		}
		go func() {
			h, err := p.client.Find(ctx, &enginepb.FindRequest{Identity: v.identity, Keys: keys})
			if err != nil || kvfile.Check(h) != nil {
				p.answered(err)
				answers <- found{}
				return
			}
			answers <- found{p, h, of(h, keys)}
		}()
	}
	for range s.cfg.Peers { // each ends with ctx
		if f := <-answers; f.tokens > best.tokens {
			best = f
		}
	}
	return best
}

// of is how many tokens of a prompt with these keys a snapshot has.
func of(h *enginepb.SnapshotHeader, keys []uint64) uint32 {
	if slices.Contains(keys, kvfile.Key(h)) {
		return h.GetTokens()
	}
	for i := len(h.GetKeys()) - 1; i >= 0; i-- {
		if slices.Contains(keys, h.GetKeys()[i]) {
			return h.GetKeyTokens()[i]
		}
	}
	return 0
}

// fetch gets a peer's snapshot, which is one of ours then.
func (s *Service) fetch(ctx context.Context, v *served, f found) (*entry, error) {
	began := time.Now()
	stream, err := f.peer.client.Load(ctx, &enginepb.LoadSnapshotRequest{Identity: v.identity, Key: kvfile.Key(f.h)})
	if err != nil {
		return nil, err
	}
	file, err := s.cfg.Folder.create(partDir)
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name()) // it has another name if all went well
	defer file.Close()
	// A state takes more than its file, but for some bytes of each block.
	for most := int64(f.h.GetStateBytes())*2 + 1<<20; ; {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if most -= int64(len(part.GetData())); most < 0 {
			return nil, fmt.Errorf("%w: longer than what it says", kvfile.ErrTorn)
		}
		if _, err := file.Write(part.GetData()); err != nil {
			return nil, err
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	h, whole, err := kvfile.Verify(file)
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Folder.Put(file.Name(), h, whole); err != nil {
		return nil, err
	}
	s.cfg.Metrics.took(phaseFetch, began)
	s.announce()
	return s.cfg.Folder.has(kvfile.Key(h)), nil
}
