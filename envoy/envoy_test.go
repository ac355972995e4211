package envoy

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
)

var update = flag.Bool("update", false, "rewrite testdata/bootstrap.json")

func TestBootstrap(t *testing.T) {
	golden(t, filepath.Join("testdata", "bootstrap.json"), Options{Admin: "127.0.0.1:9901", XDS: "127.0.0.1:7100"})
}

// TestChartHasTheBootstrap holds that the Envoy of the Helm chart starts as ours does. The
// chart replaces the name of xds.
func TestChartHasTheBootstrap(t *testing.T) {
	golden(t, filepath.Join("..", "manifests", "charts", "millrace", "files", "envoy.json"), Options{
		Admin: "127.0.0.1:9901", XDS: "xds.invalid:7100",
		TLS: &mtls.EnvoyServer{Folder: "/run/millrace/tls", Server: mtls.ID{Domain: "millrace", Role: mtls.XDS}, Protocol: "h2"},
	})
}

// golden compares a bootstrap with a file.
func golden(t *testing.T, path string, o Options) {
	t.Helper()
	got, err := Bootstrap(o)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// As messages: protojson varies its spaces.
	if diff := cmp.Diff(parse(t, want), parse(t, got), protocmp.Transform()); diff != "" {
		t.Errorf("%s differs; review it, then run with -update (-want +got):\n%s", path, diff)
	}
}

func parse(t *testing.T, b []byte) *bootstrapv3.Bootstrap {
	t.Helper()
	m := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestBootstrapOfAHostName(t *testing.T) {
	b, err := Bootstrap(Options{Admin: "127.0.0.1:9901", XDS: "xds.example:7100"})
	if err != nil {
		t.Fatal(err)
	}
	if typ := parse(t, b).GetStaticResources().GetClusters()[0].GetType().String(); typ != "STRICT_DNS" {
		t.Errorf("the cluster of a host name has type %s", typ)
	}
}

func TestBadAddresses(t *testing.T) {
	for _, o := range []Options{{Admin: "x", XDS: "a:1"}, {Admin: "127.0.0.1:1", XDS: "x"}, {Admin: "127.0.0.1:1", XDS: "a:99999"}} {
		if _, err := Bootstrap(o); err == nil || !strings.HasPrefix(err.Error(), "envoy: ") {
			t.Errorf("Bootstrap(%v) = %v", o, err)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	program := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	given, byEnv, inPath := program("given"), program("by-env"), program("envoy")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, flag, env, path string
		want                  string
		hint                  bool
	}{
		{name: "flag before all", flag: given, env: byEnv, path: dir, want: given},
		{name: "variable before PATH", env: byEnv, path: dir, want: byEnv},
		{name: "PATH", path: dir, want: inPath},
		{name: "nowhere", path: "/nowhere"},
		{name: "a flag that is wrong is not passed over", flag: "/nowhere/envoy", env: byEnv, path: dir, hint: true},
		{name: "no program", flag: text, path: dir, hint: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(Env, tt.env)
			t.Setenv("PATH", tt.path)
			got, err := Find(tt.flag)
			if got != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, ErrNotFound) {
				t.Errorf("Find(%q) = %q, %v; want %q", tt.flag, got, err, tt.want)
			}
			if h := (*obs.Hint)(nil); errors.As(err, &h) != tt.hint {
				t.Errorf("Find(%q) has a hint: %v", tt.flag, !tt.hint)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	args := Args("/x.json", 0)
	if i := slices.Index(args, "--concurrency"); args[i+1] != "1" || args[1] != "/x.json" {
		t.Errorf("Args() = %v", args)
	}
	if v := ValidateArgs("/x.json"); v[len(v)-1] != "validate" || v[len(v)-2] != "--mode" {
		t.Errorf("ValidateArgs() = %v", v)
	}
}
