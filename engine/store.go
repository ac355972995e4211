package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/boltdb"
	"millrace.dev/millrace/engine/internal/conversation"
	"millrace.dev/millrace/engine/internal/copies"
	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/engine/internal/replica"
	"millrace.dev/millrace/engine/internal/valkey"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/secret"
)

// opened is the store as it runs.
type opened struct {
	service *conversation.Service // nil: nothing is stored
	copies  *copies.Server        // nil: there is no file
	run     func(context.Context) error
}

// mostFrame is what a message has beside a record, in bytes.
const mostFrame = 4 << 10

// open opens the store.
func (r *records) open(env *program.Env, node string) (opened, error) {
	idle := opened{run: func(context.Context) error { return nil }}
	codec, err := r.codec()
	if err != nil || r.file == "" && r.url == "" {
		return idle, err
	}
	if r.url != "" {
		password, err := r.password()
		if err != nil {
			return idle, err
		}
		s, err := valkey.New(valkey.Config{URL: secret.URL(r.url), Password: password, Limits: r.limits, Codec: codec})
		if err != nil {
			return idle, err
		}
		return opened{service: conversation.New(s, replica.Hint(node)), run: func(ctx context.Context) error {
			<-ctx.Done()
			s.Close()
			return nil
		}}, nil
	}
	peers, err := r.dial(env, node)
	if err != nil {
		return idle, err
	}
	disk, err := boltdb.Open(boltdb.Config{Path: r.file, Limits: r.limits, Codec: codec, Log: env.Log})
	if err != nil { // the rest is served all the same
		env.Log.Warn("responses and conversations are not stored", "err", err)
		return idle, nil
	}
	places := make([]replica.Place, len(peers))
	for i, p := range peers {
		places[i] = p
	}
	s := replica.New(replica.Config{Node: node, Disk: disk, Codec: codec, Limits: r.limits, Others: func() []replica.Place { return places }})
	return opened{
		service: conversation.New(s, replica.Hint(node)), copies: &copies.Server{Disk: disk},
		run: func(ctx context.Context) error {
			g := errgroup.Group{}
			g.Go(func() error { return disk.Run(ctx) })
			g.Go(func() error { return s.Run(ctx) })
			err := g.Wait()
			for _, p := range peers {
				err = errors.Join(err, p.Close())
			}
			return err
		},
	}, nil
}

// dial returns the files of the other nodes.
func (r *records) dial(env *program.Env, node string) ([]*copies.Peer, error) {
	addresses, err := addresses(r.peers, node)
	if err != nil {
		return nil, err
	}
	var all []*copies.Peer
	for other, address := range addresses {
		p, err := copies.Dial(other, address, r.message(), env.Identity.DialOption(mtls.IsEngineOf(other)))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// message is the largest message with a record, in bytes.
func (r *records) message() int { return int(r.limits.Record) + record.Overhead + mostFrame }

// options and register let others reach the file.
func (r *records) options() grpc.ServerOption { return grpc.MaxRecvMsgSize(max(4<<20, r.message())) }

func (o opened) register(s grpc.ServiceRegistrar) {
	if o.copies != nil {
		enginepb.RegisterRecordsServer(s, o.copies)
	}
}
