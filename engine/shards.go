package main

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/engine/internal/tunnel"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/program"
)

// shards is how the parts of a replica reach each other: straight, or with an
// identity through a tunnel.
type shards struct {
	// local is where this node's shard listens, ways leads to those of a replica; nil:
	// straight.
	local string
	ways  func(*enginepb.Assignment) ([]string, error)

	ln     net.Listener // nil: no tunnel
	tunnel *tunnel.Tunnel
	head   atomic.Pointer[supervise.Supervisor] // who knows the head; nil: not yet
}

// shards opens the tunnel's port, if there is to be one.
func (o *options) shards(env *program.Env) (*shards, error) {
	s := &shards{local: o.shard}
	if env.Identity == nil {
		return s, nil
	}
	ports, err := proc.FreePorts(1)
	if err != nil {
		return nil, err
	}
	if s.ln, err = env.Listen("shard", o.shard); err != nil {
		return nil, err
	}
	s.local = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	s.tunnel = tunnel.New(tunnel.Config{Identity: env.Identity, Shard: s.local, Head: s.headNode, Log: env.Log.With("node", o.node)})
	s.ways = s.tunnel.Ways
	return s, nil
}

// headNode returns the node of the head of the replica in force.
func (s *shards) headNode() (string, bool) {
	supervisor := s.head.Load()
	if supervisor == nil {
		return "", false
	}
	snap, _ := supervisor.Snapshot()
	stages := snap.Assignment.GetStages()
	if len(stages) < 2 {
		return "", false
	}
	return stages[0].GetNode(), true
}

// run serves until ctx ends.
func (s *shards) run(ctx context.Context, supervisor *supervise.Supervisor) error {
	if s.tunnel == nil {
		return nil
	}
	s.head.Store(supervisor)
	return s.tunnel.Serve(ctx, s.ln)
}
