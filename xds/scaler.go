package main

import (
	"context"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/keda"
	"millrace.dev/millrace/xds/scalerpb"
)

// serveScaler answers KEDA until ctx ends, if it is to.
func (o *options) serveScaler(ctx context.Context, g *errgroup.Group, env *program.Env, nodes *fleet.Service) error {
	if o.scaler == "" {
		return nil
	}
	ln, err := env.Listen("scaler", o.scaler)
	if err != nil {
		return err
	}
	s := env.GRPC(keepalive.ServerParameters{})
	scalerpb.RegisterExternalScalerServer(s, keda.New(nodes))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	g.Go(func() error { return s.Serve(ln) })
	g.Go(func() error {
		<-ctx.Done()
		s.Stop() // streams never end by themselves
		return nil
	})
	env.Log.Info("scaler", "grpc", ln.Addr().String())
	return nil
}
