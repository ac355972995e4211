// Package copies is the way of records between engines: the service by which others reach this
// node's file, and their files as replica sees them.
//
// Called by main. Its one rule: a node that does not answer costs no request more than one wait:
// for a while after, it is taken to be away without being asked.
package copies

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/boltdb"
	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/trust"
)

// Server lets other engines reach a file.
type Server struct {
	enginepb.UnimplementedRecordsServer
	Disk *boltdb.DB
}

// Load returns the bytes of a record: see the contract.
func (s *Server) Load(_ context.Context, q *enginepb.LoadRequest) (*enginepb.LoadReply, error) {
	if err := trust.Message(q); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	raw, err := s.Disk.Load(record.Key{Tenant: q.GetTenant(), ID: q.GetId()})
	if err != nil {
		return nil, toStatus(err)
	}
	return &enginepb.LoadReply{Record: raw}, nil
}

// Keep writes the bytes of a record: see the contract.
func (s *Server) Keep(_ context.Context, q *enginepb.KeepRequest) (*enginepb.KeepReply, error) {
	if err := trust.Message(q); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.Disk.Keep(record.Key{Tenant: q.GetTenant(), ID: q.GetId()}, q.GetRecord(), q.GetRenew()); err != nil {
		return nil, toStatus(err)
	}
	return &enginepb.KeepReply{}, nil
}

// of is the code of each error, in the contract.
var of = map[codes.Code]error{
	codes.NotFound: record.ErrNotFound, codes.FailedPrecondition: record.ErrConflict,
	codes.ResourceExhausted: record.ErrTooLarge, codes.InvalidArgument: record.ErrTorn,
}

func toStatus(err error) error {
	for code, is := range of {
		if errors.Is(err, is) {
			return status.Error(code, err.Error())
		}
	}
	return status.Error(codes.Unavailable, err.Error())
}

// fromStatus is the error that a code stands for; what is none of the contract is that the node
// did not answer.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	if is := of[status.Code(err)]; is != nil {
		return fmt.Errorf("%w: %s", is, status.Convert(err).Message())
	}
	return fmt.Errorf("%w: %w", record.ErrUnavailable, err)
}

// answerIn bounds how long a node may take, and awayFor how long it is taken to be away after
// it has not answered.
const (
	answerIn = 2 * time.Second
	awayFor  = 2 * time.Second
)

// Peer is the file of another node.
type Peer struct {
	node   string
	client enginepb.RecordsClient
	conn   *grpc.ClientConn

	// mu guards the fields below.
	mu   sync.Mutex
	away time.Time // when it last did not answer
	why  error
}

// Dial returns the file of the node at an address; no connection is made before it is used.
// Messages may have so many bytes.
func Dial(node, address string, most int, security grpc.DialOption) (*Peer, error) {
	conn, err := grpc.NewClient(address, security,
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most)))
	if err != nil {
		return nil, fmt.Errorf("records of node %s: %w", node, err)
	}
	return &Peer{node: node, client: enginepb.NewRecordsClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (p *Peer) Close() error { return p.conn.Close() }

// Node is the node's name.
func (p *Peer) Node() string { return p.node }

// Load returns the bytes of a record: see replica.Place.
func (p *Peer) Load(ctx context.Context, k record.Key) (raw []byte, err error) {
	err = p.ask(ctx, func(ctx context.Context) error {
		reply, err := p.client.Load(ctx, &enginepb.LoadRequest{Tenant: k.Tenant, Id: k.ID})
		raw = reply.GetRecord()
		return err
	})
	return raw, err
}

// Keep writes the bytes of a record: see replica.Place.
func (p *Peer) Keep(ctx context.Context, k record.Key, raw []byte, renew bool) error {
	return p.ask(ctx, func(ctx context.Context) error {
		_, err := p.client.Keep(ctx, &enginepb.KeepRequest{Tenant: k.Tenant, Id: k.ID, Record: raw, Renew: renew})
		return err
	})
}

// ask asks the node, unless it has just not answered.
func (p *Peer) ask(ctx context.Context, do func(context.Context) error) error {
	p.mu.Lock()
	away, why := !p.away.IsZero() && time.Since(p.away) < awayFor, p.why
	p.mu.Unlock()
	if away {
		return why
	}
	within, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	err := fromStatus(do(within))
	if ctx.Err() == nil { // else it is not the node's fault
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.away = (time.Time{}); errors.Is(err, record.ErrUnavailable) {
			p.away, p.why = time.Now(), err
		}
	}
	return err
}
