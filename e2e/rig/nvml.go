package rig

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// FakeNVML builds the stand-in for NVIDIA's library into a folder, and returns its path. It
// reads its figures from the file that FAKE_NVML_STATE names.
func FakeNVML(t testing.TB, dir string) string {
	t.Helper()
	lib := filepath.Join(dir, "libnvidia-ml.so.1")
	out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", lib,
		filepath.Join(Root(), "nodeagent", "internal", "gpu", "testdata", "fakenvml.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return lib
}
