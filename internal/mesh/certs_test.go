package mesh

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/state"
)

func TestCertificatesOfAMesh(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	now := time.Now()
	c, err := newCertificates(dir, 2, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s; must be the owner's alone", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	me, err := state.State{TLS: dir}.Operator()
	if err != nil || me.ID() != (mtls.ID{Domain: trustDomain, Role: mtls.Operator}) {
		t.Errorf("the operator is %v, %v", me, err)
	}
	agent := mtls.In(dir, mtls.ID{Role: mtls.NodeAgent, Node: "node-b"})
	before, err := os.ReadFile(agent.Cert)
	if err != nil {
		t.Fatal(err)
	}
	// While nothing is due, and after a machine has slept through the certificates' life.
	for _, tt := range []struct {
		after time.Duration
		due   bool
	}{{29 * time.Minute, false}, {31 * time.Minute, true}, {100 * time.Hour, true}, {-time.Hour, true}} {
		if got := c.due(now.Add(tt.after)); got != tt.due {
			t.Errorf("due after %s: %v", tt.after, got)
		}
	}
	if err := c.issue(now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(agent.Cert); err != nil || string(after) == string(before) {
		t.Errorf("the certificate is as before, %v", err)
	}
	if c.due(now.Add(time.Hour)) {
		t.Error("new ones are due at once")
	}
}

func TestPlanWithTLS(t *testing.T) {
	in := Input{
		Listen: "127.0.0.1:10000", Dir: "/mesh", Nodes: 1, ExtProcs: 1, Programs: "/bin", Envoy: "/envoy", TLS: "/mesh/tls",
		Ports: []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
	}
	for _, s := range NewPlan(in).Specs {
		args := strings.Join(s.Args, " ")
		file := "/mesh/tls/" + s.Role
		if s.Node != "" {
			file += "@" + s.Node
		}
		want := "-tls-cert " + file + ".pem -tls-key " + file + ".pem -tls-ca /mesh/tls/ca.pem"
		if got := strings.Contains(args, want); got != (s.Role != "envoy") {
			t.Errorf("%s %s", s.Name, args)
		}
		if s.Role == "xds" && !strings.Contains(args, "-envoy-tls /mesh/tls") {
			t.Errorf("xds %s", args)
		}
	}
}
