package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/keda"
	"millrace.dev/millrace/xds/scalerpb"
)

// validateScaler returns what is wrong with the flags of the port for KEDA.
func (o *options) validateScaler() error {
	if o.scaler == "" && (o.scalerTLS.On() || o.scalerTLS.Clients != "") {
		return errors.New("-scaler-tls-cert, -scaler-tls-key, -scaler-tls-client-ca; go with -scaler")
	}
	return o.scalerTLS.Check()
}

// serveScaler answers KEDA until ctx ends, if it is to.
func (o *options) serveScaler(ctx context.Context, g *errgroup.Group, env *program.Env, nodes *fleet.Service) error {
	if o.scaler == "" {
		return nil
	}
	ln, err := env.Open("scaler", o.scaler)
	if err != nil {
		return err
	}
	options, err := o.scalerTLS.Options(env.Log)
	if err != nil {
		return err
	}
	s := grpc.NewServer(options...)
	scalerpb.RegisterExternalScalerServer(s, keda.New(nodes))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	g.Go(func() error { return s.Serve(ln) })
	g.Go(func() error {
		<-ctx.Done()
		s.Stop() // streams never end by themselves
		return nil
	})
	env.Log.Info("KEDA is served", "scaler", ln.Addr().String())
	return nil
}
