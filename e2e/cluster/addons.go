package cluster

import (
	"context"
	"embed"
	"fmt"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed testdata/*.tmpl
var manifests embed.FS

// applyManifest applies a template of testdata.
func (c *Cluster) applyManifest(ctx context.Context, name string) error {
	t, err := template.New(name).Delims("[[", "]]").Option("missingkey=error").ParseFS(manifests, "testdata/"+name)
	if err != nil {
		return err
	}
	var b strings.Builder
	if err := t.Execute(&b, map[string]string{
		"Programs": programsImage, "Envoy": envoyImage, "DNS": dnsIP, "Domain": domain, "Istiod": istiodIP, "Gateway": gatewayBootstrap(),
	}); err != nil {
		return err
	}
	if _, err := c.Apply(ctx, b.String()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// applyDNS starts CoreDNS.
func (c *Cluster) applyDNS(ctx context.Context) error { return c.applyManifest(ctx, "dns.yaml.tmpl") }

// applyIstio starts istiod, whose gateways are stock Envoy, with the resource
// definitions of Istio, Gateway API and the inference extension, and the agent of its
// Envoys.
func (c *Cluster) applyIstio(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(c.programs, "crds")); err != nil {
		return err
	}
	envoy, err := envoyArchive(c.programs)
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.Import(envoy); err != nil {
			return err
		}
	}
	if err := c.serveSecrets(); err != nil {
		return err
	}
	return c.applyManifest(ctx, "istio.yaml.tmpl")
}
