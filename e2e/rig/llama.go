package rig

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
)

// LlamaServer is llama.cpp's own HTTP server as anybody would start it, without our
// engine: an endpoint from outside the mesh.
type LlamaServer struct {
	*Process
	Addr  string
	stdin io.Closer // it ends when this is closed
}

// StartLlamaServer starts a server of the default model (id Model) with four slots at
// an address; it ends with the test. It serves once Healthy(addr) is nil.
func StartLlamaServer(t testing.TB, addr string) *LlamaServer {
	t.Helper()
	cmd := exec.Command("python3", filepath.Join(Root(), "e2e", "rig", "testdata", "llama_server.py"),
		MustCached(t, "llamacpp-*"), MustCached(t, Weights), addr)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return &LlamaServer{Process: Start(t, "llama-server "+addr, cmd), Addr: addr, stdin: stdin}
}

// AwaitHealthy waits until the server answers /health.
func (s *LlamaServer) AwaitHealthy(t testing.TB) {
	t.Helper()
	Wait(t, StartLimit, s.Name+" serves", func() error {
		select {
		case <-s.Done():
			return Final(fmt.Errorf("it ended: %v", s.Err()))
		default:
		}
		return Healthy(s.Addr)
	})
}
