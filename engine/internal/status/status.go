// Package status serves the Engine contract: the engine's desired state and
// its observed state.
//
// Called by nodeagent, by the engines that share a replica, and by `millrace up`.
// Its one rule: nothing that breaks the contract's rules goes in or out.
package status

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/trust"
)

// defaultInterval is the longest time between two statuses where the caller
// names none.
const defaultInterval = 250 * time.Millisecond

// cacheEvery bounds how often a status is sent because of the cache alone.
const cacheEvery = 50 * time.Millisecond

// Config is what a Server reports.
type Config struct {
	// Node is this engine's node.
	Node string
	// HTTP, GRPC, Backend and Shard are "ip:port".
	HTTP, GRPC, Backend, Shard string
	// PlainText is whether HTTP has no TLS though the others have.
	PlainText bool
	// Kinds are what this engine can run.
	Kinds      backend.Kinds
	Supervisor *supervise.Supervisor
	Gate       *admit.Gate
	Meter      *meter.Meter
	Cache      *cachelog.Log
	// Ends is closed when the engine ends, which ends the streams.
	Ends <-chan struct{}
}

// Server implements the contract.
type Server struct {
	enginepb.UnimplementedEngineServer
	cfg Config
}

// New returns a server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Watch streams the engine's status.
func (s *Server) Watch(req *enginepb.WatchRequest, stream grpc.ServerStreamingServer[enginepb.Status]) error {
	if err := trust.Message(req); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	interval := defaultInterval
	if d := req.GetInterval(); d != nil {
		interval = d.AsDuration()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var sent *enginepb.Cache
	for {
		snap, changed := s.cfg.Supervisor.Snapshot()
		log := s.cacheLog(snap.Assignment)
		var logged <-chan struct{} // a nil one waits for ever
		if req.GetCache() {
			logged = log.Changed()
		}
		now := s.status(snap)
		if req.GetCache() {
			cache := log.Cache()
			now.Cache, sent = cache.Since(sent), cache
		}
		if err := stream.Send(now); err != nil {
			return err
		}
		if err := s.wait(stream.Context(), tick, changed, logged); err != nil {
			return err
		}
	}
}

// cacheLog is what is logged of a KV cache.
type cacheLog interface {
	Cache() *enginepb.Cache
	Changed() <-chan struct{}
	Tokens() uint64
}

// cacheLog is the backend's own log, or where it has none, what was logged of prompts.
func (s *Server) cacheLog(a *enginepb.Assignment) cacheLog {
	if kind := s.cfg.Kinds.Of(a); kind != nil {
		if log := kind.Blocks(a); log != nil {
			return log
		}
	}
	return s.cfg.Cache
}

// wait waits until there is a status to send.
func (s *Server) wait(ctx context.Context, tick *time.Ticker, changed, logged <-chan struct{}) error {
	soon := time.NewTimer(cacheEvery)
	defer soon.Stop()
	var news <-chan struct{}
	for {
		select {
		case <-changed:
			return nil
		case <-tick.C:
			return nil
		case <-soon.C:
			news = logged
		case <-news:
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.cfg.Ends:
			return status.Error(codes.Unavailable, "the engine ends")
		}
	}
}

// Assign sets what the engine serves from now on.
func (s *Server) Assign(_ context.Context, a *enginepb.Assignment) (*enginepb.AssignReply, error) {
	if err := trust.Message(a); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.check(a); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	v, err := s.cfg.Supervisor.Assign(a)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &enginepb.AssignReply{Generation: v.Generation, ControlEpoch: v.Epoch}, nil
}

// check holds the rules that span several fields.
func (s *Server) check(a *enginepb.Assignment) error {
	if a.Releases() {
		return nil
	}
	if int(a.GetStage()) >= len(a.GetStages()) {
		return fmt.Errorf("stage: %d; must be < %d, the number of stages", a.GetStage(), len(a.GetStages()))
	}
	own := a.GetStages()[a.GetStage()]
	if own.GetNode() != s.cfg.Node {
		return fmt.Errorf("stages[%d].node: %q; must be this engine's, %q", a.GetStage(), own.GetNode(), s.cfg.Node)
	}
	if err := s.cfg.Kinds.Check(a); err != nil {
		return err
	}
	if len(a.GetStages()) == 1 {
		return nil
	}
	if own.GetShardAddress() != s.cfg.Shard {
		return fmt.Errorf("stages[%d].shard_address: %q; must be this engine's, %q", a.GetStage(), own.GetShardAddress(), s.cfg.Shard)
	}
	for i, stage := range a.GetStages() {
		if stage.GetShardAddress() == "" {
			return fmt.Errorf("stages[%d].shard_address: empty; must be set where there are several stages", i)
		}
	}
	return nil
}

func (s *Server) status(snap *supervise.Snapshot) *enginepb.Status {
	load, speed, totals := s.cfg.Gate.Load(), s.cfg.Meter.Speed(), s.cfg.Meter.Totals()
	v := &enginepb.Status{
		Node: s.cfg.Node, Generation: snap.Version.Generation, ControlEpoch: snap.Version.Epoch, Assignment: snap.Assignment, Epoch: snap.Epoch,
		State: snap.State, Reason: short(snap.Reason), Since: timestamppb.New(snap.Since),
		HttpAddress: s.cfg.HTTP, HttpPlainText: s.cfg.PlainText, GrpcAddress: s.cfg.GRPC, ShardAddress: s.cfg.Shard,
		Load: &enginepb.Load{
			Running: uint32(load.Running), Waiting: uint32(load.Waiting), Slots: uint32(load.Slots), Limit: short(load.Limit),
			TokensInFlight: uint64(load.Tokens), CachedTokens: s.cacheLog(snap.Assignment).Tokens(),
		},
		Speed: &enginepb.Speed{Prefill: within(speed.Prefill), Decode: within(speed.Decode)},
		Totals: &enginepb.Totals{
			Requests: totals.Requests, PromptTokens: totals.Prompt, CachedTokens: totals.Cached, GeneratedTokens: totals.Generated,
		},
	}
	if snap.Dormant {
		v.Load.Wake = durationpb.New(snap.Wake)
	}
	v.Load.KvUsedTokens, v.Load.KvTotalTokens = s.cfg.Meter.KV()
	v.Load.BackendRunning, v.Load.BackendWaiting = s.cfg.Meter.Backend()
	if kind := s.cfg.Kinds.Of(snap.Assignment); kind != nil {
		v.Capabilities = kind.Capabilities(snap.Assignment)
	}
	for _, a := range s.cfg.Meter.Accounts(time.Now()) {
		v.Accounts = append(v.Accounts, &enginepb.Account{Request: a.Request, GeneratedTokens: a.Generated})
	}
	for _, p := range snap.Processes {
		v.Processes = append(v.Processes, s.process(p))
	}
	return v
}

func (s *Server) process(p supervise.Process) *enginepb.Process {
	address := s.cfg.Backend
	if p.Role == backend.Shard {
		address = s.cfg.Shard
	}
	return &enginepb.Process{
		Role: p.Role.String(), Pid: uint32(p.PID), Address: address, Restarts: p.Restarts,
		Since: timestamppb.New(p.Since), RssBytes: p.RSS, Cpu: durationpb.New(p.CPU),
	}
}

// within returns a speed as the contract has it, in tokens per second; 0: not measured.
func within(speed float64) float64 {
	if speed == 0 {
		return 0
	}
	return trust.Clamp(speed, meter.Least, meter.Most)
}

// maxReason is the contract's bound, in runes; a backend's own message may be longer.
const maxReason = 1024

func short(reason string) string {
	r := []rune(reason)
	if len(r) <= maxReason {
		return reason
	}
	return string(r[:maxReason])
}
