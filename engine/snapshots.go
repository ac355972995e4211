package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/api"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/engine/internal/snapshot"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/usable"
)

// snapshots is where the KV states of conversations are saved, by flags.
type snapshots struct {
	dir, peers string
	most, rate int64
}

// mostSnapshots is how much they may need by default, in bytes: some ten long conversations of a
// small model.
const mostSnapshots = 512 << 20

// copyRate is how fast copies are sent by default, in bytes per second: half of what a link of
// 1 Gbit/s has.
const copyRate = 64 << 20

func (s *snapshots) flags(f *program.Flags) {
	f.StringVar(&s.dir, "snapshots", "", "`folder` for what conversations have in the backend's KV cache, saved after each turn; if empty, it is lost with the backend")
	f.Int64Var(&s.most, "snapshots-bytes", mostSnapshots, "`bytes` that they may need; what is worth the least makes room")
	f.StringVar(&s.peers, "snapshots-peers", "", "engines that have copies of each other's snapshots, `node=ip:port` of their Engine service, with commas in between; this node may be one")
	f.Int64Var(&s.rate, "snapshots-rate", copyRate, "`bytes` per second that copies may take of the network")
}

func (s *snapshots) validate() error {
	var errs []error
	const least, slowest = 1 << 20, 1 << 10
	if s.most < least {
		errs = append(errs, fmt.Errorf("-snapshots-bytes: %d; must be ≥ %d", s.most, least))
	}
	if s.rate < slowest {
		errs = append(errs, fmt.Errorf("-snapshots-rate: %d; must be ≥ %d", s.rate, slowest))
	}
	if _, err := addresses(s.peers, ""); err != nil {
		errs = append(errs, fmt.Errorf("-snapshots-peers: %w", err))
	}
	return errors.Join(errs...)
}

// usable says what is wrong with the folder.
func (s *snapshots) usable() error {
	if s.dir == "" {
		return nil
	}
	if err := usable.Folder(filepath.Dir(s.dir)); err != nil {
		return fmt.Errorf("-snapshots: %w", err)
	}
	return nil
}

// open opens the folder, and has backends write there; nil: nothing is saved.
func (s *snapshots) open(env *program.Env, k *kinds) *snapshot.Folder {
	if s.dir == "" {
		return nil
	}
	dir, err := filepath.Abs(s.dir)
	var folder *snapshot.Folder
	var torn int
	if err == nil {
		folder, torn, err = snapshot.Open(dir, s.most)
	}
	if err != nil { // the rest is served all the same
		env.Log.Warn("KV states of conversations are not saved", "err", err)
		return nil
	}
	if torn > 0 {
		env.Log.Warn("snapshots that were torn are removed", "folder", dir, "files", torn)
	}
	k.states(folder.States())
	return folder
}

// secret is what they are sealed with: the key of what is stored.
func (r *records) secret() (*kvfile.Secret, error) {
	key, err := r.key()
	return kvfile.NewSecret(key), err
}

// saving returns the service of a folder; nil: there is none.
func (s *snapshots) saving(cfg snapshot.Config, env *program.Env, o *options) (_ *snapshot.Service, err error) {
	if cfg.Folder == nil {
		return nil, nil
	}
	if cfg.Secret, err = o.records.secret(); err != nil {
		return nil, err
	}
	others, err := addresses(s.peers, o.node)
	if err != nil {
		return nil, err
	}
	for other, address := range others {
		p, err := snapshot.Dial(other, address, env.Identity.DialOption(mtls.IsEngineOf(other)))
		if err != nil {
			return nil, err
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	cfg.Metrics, cfg.Log, cfg.Rate = snapshot.NewMetrics(env.Metrics, cfg.Folder), env.Log, s.rate
	return snapshot.New(cfg), nil
}

// runSnapshots runs the service, and waits for it.
func runSnapshots(ctx context.Context, s *snapshot.Service) error {
	if s == nil {
		return nil
	}
	return s.Run(ctx)
}

// registerSnapshots lets others reach the folder.
func registerSnapshots(srv grpc.ServiceRegistrar, s *snapshot.Service) {
	if s != nil {
		enginepb.RegisterSnapshotsServer(srv, s.Server())
	}
}

// restorer is what api asks; nil: nothing is saved.
func restorer(s *snapshot.Service) api.Snapshots {
	if s == nil {
		return nil
	}
	return s
}
