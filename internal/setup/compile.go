package setup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compile builds the RPC plugin from dir/src, which it removes.
func (i installer) compile(ctx context.Context, p part, dir string) error {
	t := i.show.Begin("compile the RPC plugin of "+p.Name, 0, nil)
	src := filepath.Join(dir, "src")
	cmd := exec.Command(i.compiler.Path, "-std=c++17", "-O2", "-fPIC", "-shared",
		"-DNDEBUG", "-DGGML_BACKEND_DL", "-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD", "-DGGML_SHARED",
		"-Iinclude", "-Isrc", "src/ggml-rpc/ggml-rpc.cpp", "src/ggml-rpc/transport.cpp",
		"-o", filepath.Join(dir, "libggml-rpc.so"))
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	printed, err := output(ctx, cmd)
	if err != nil {
		return hint(fmt.Errorf("compile the RPC plugin: %s: %w", compilerError(printed), err),
			"install a complete C++ compiler (Debian: apt-get install g++), or set CXX to another one")
	}
	i.show.End(t)
	return os.RemoveAll(src)
}

// compilerError returns the first line that has an error, else the last.
func compilerError(printed string) string {
	for line := range strings.Lines(printed) {
		if strings.Contains(line, "error") {
			return strings.TrimSpace(line)
		}
	}
	return lastLine(printed)
}
