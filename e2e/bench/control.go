package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"millrace.dev/millrace/e2e/rig"
)

// control is a real xds with a fleet of fake nodes behind it.
type control struct {
	xds   *program
	addr  string // of xds, gRPC
	fleet fakeFleet
	end   context.CancelFunc
	ended chan error
}

// control starts xds with n ready engines at the given addresses. gateway is
// where Envoy is to listen, picker where it asks. edit may change how engines report.
func (b *bench) control(ctx context.Context, name, gateway, picker string, engines []string, edit ...func(*fakeFleet)) (*control, error) {
	file := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(b.modelFile(len(engines))), 0o644); err != nil {
		return nil, err
	}
	at, err := rig.Addresses(2)
	if err != nil {
		return nil, err
	}
	c := &control{addr: at[0], ended: make(chan error, 1)}
	c.xds, err = b.launch(ctx, name, at[0], filepath.Join(b.bin, "xds"), nil,
		"-listen", at[0], "-metrics", at[1], "-config", file, "-gateway", gateway, "-extproc", picker,
		"-access-log", filepath.Join(b.dir, name+"-access.log"))
	if err != nil {
		return nil, err
	}
	ctx, c.end = context.WithCancel(ctx)
	c.fleet = fakeFleet{xds: at[0], engines: engines, beat: beat}
	for _, f := range edit {
		f(&c.fleet)
	}
	go func() { c.ended <- c.fleet.run(ctx) }()
	if err := c.fleet.ready(ctx); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w\n%s", err, c.xds.out.Tail())
	}
	return c, nil
}

func (c *control) stop() {
	c.end()
	<-c.ended
	c.xds.stop()
}
