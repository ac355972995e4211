package main

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/kube"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/istio"
)

// mesh is the flags of an xds whose engines Envoys of an Istio mesh reach, too.
type mesh struct {
	namespaces, front, extproc string
	writer                     *istio.Writer // nil: nothing is written
}

func (m *mesh) flags(f *program.Flags) {
	f.StringVar(&m.namespaces, "istio", "", "`namespaces` in which xds writes Istio's objects by the policy's spec.istio, its own first; if empty, it writes none")
	f.StringVar(&m.front, "istio-front", "", "`host` of the Service that clients with sidecars call")
	f.StringVar(&m.extproc, "istio-extproc", "", "`host:port,…` of every extproc's port without TLS, for Istio's Envoys; if empty, they route by weight alone")
}

func (m *mesh) validate(c *cluster) error {
	switch {
	case m.namespaces == "" && (m.front != "" || m.extproc != ""):
		return errors.New("-istio-front, -istio-extproc; need -istio, too")
	case m.namespaces != "" && c.Namespace == "":
		return errors.New("-istio; needs -kube, too: Istio's objects are in a cluster")
	}
	return nil
}

// leader is who of several xds writes.
type leader struct{ *cluster }

// Leads reports whether this one does.
func (l leader) Leads() bool { return l.Cluster != nil && l.Cluster.Leads() }

// open makes the writer, if there is to be one. refuse is as in translate.Site.
func (m *mesh) open(env *program.Env, c *cluster, refuse bool) error {
	if m.namespaces == "" {
		return nil
	}
	access, err := kube.Config()
	if err != nil {
		return err
	}
	client, err := istio.Connect(access)
	if err != nil {
		return err
	}
	site := istio.Site{
		Namespace: c.Namespace, Name: strings.TrimSuffix(c.Lease, "-xds"),
		Namespaces: strings.Split(m.namespaces, ","), Front: m.front, Refuse: refuse,
	}
	if m.extproc != "" {
		site.ExtProc = strings.Split(m.extproc, ",")
	}
	m.writer = istio.New(site, client, leader{c}, env.Log, env.Metrics)
	return nil
}

// serve runs the writer, if there is one, until ctx ends.
func (m *mesh) serve(ctx context.Context, g *errgroup.Group, nodes *fleet.Service) {
	if m.writer != nil {
		g.Go(func() error { return m.writer.Run(ctx, nodes.Latest) })
	}
}

// conditions returns what of the policy's spec.istio can't be followed.
func (m *mesh) conditions() []obs.Condition {
	if m.writer == nil {
		return nil
	}
	return m.writer.Conditions()
}
