// Package e2e tests all programs together: the built binaries, a real Envoy and
// a real model, started by `millrace up` as a user starts them.
//
// Most tests share one mesh with default flags, which must survive them all. Tests
// in files named with_own_mesh_* start another: they sort last, so that the shared
// one is ended once. Its one rule: a test reads what anybody can read (state.json,
// logs, admin ports, /proc) and never reaches into a program.
package e2e

import (
	"os"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// What most tests ask: the default model, for an answer to a chat.
const (
	model    = rig.Model
	chatPath = rig.ChatPath
)

// mesh is a mesh with what the tests of this package ask of it.
type mesh struct{ *rig.Mesh }

// shared returns the mesh of all tests, once it is whole again.
func shared(t *testing.T) *mesh {
	t.Helper()
	return &mesh{rig.SharedMesh(t)}
}

// own starts a mesh for one test with flags of its own, and ends it with it.
func own(t *testing.T, flags ...string) *mesh {
	t.Helper()
	return &mesh{rig.OwnMesh(t, flags...)}
}

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }
