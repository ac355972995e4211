// Package vllm is the kind of backend that is a vLLM: one process group on one node,
// however many ranks the model is split among.
//
// Called through backend.Kind. Its one rule: vLLM's own forms go no further than this
// package.
package vllm

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/backends"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
)

// keeper is run by Python: it ends vLLM's processes when engine has gone, which they
// would not notice.
//
//go:embed keeper.py
var keeper string

// Program says with what vLLM is run on this node, and where it listens.
type Program struct {
	// Path is vLLM's command, or the folder of a Python environment that has it;
	// empty: there is none on this node.
	Path string
	// Address is "ip:port".
	Address string
}

// Flags adds the flag that says with what vLLM is run.
func (p *Program) Flags(fs *flag.FlagSet) {
	fs.StringVar(&p.Path, "vllm", "", "`path` of vLLM's command, or of a Python environment with it")
}

// Check says what keeps this node from running vLLM, if it is to; nil is nothing.
func (p Program) Check() error {
	if p.Path == "" {
		return nil
	}
	if _, err := p.command(); err != nil {
		return &obs.Hint{Err: fmt.Errorf("vllm: %w", err), Next: "set -vllm to the folder of a Python environment with vLLM, or to its command"}
	}
	if _, err := exec.LookPath("python3"); err != nil {
		return fmt.Errorf("python: %w", err)
	}
	return nil
}

// command returns the path of the command.
func (p Program) command() (string, error) {
	path := p.Path
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "bin", "vllm")
	}
	return exec.LookPath(path)
}

// errNone is the fault of a node without vLLM.
var errNone = errors.New("backend.kind: VLLM: no vLLM is on this node: start the engine with -vllm")

// check returns what vLLM can't be asked for, or what this node lacks to run it.
func (p Program) check(a *enginepb.Assignment) error {
	if err := backend.CheckSettings(backends.VLLM, a); err != nil {
		return err
	}
	if p.Path == "" {
		return errNone
	}
	return nil
}

// head returns the command of the server. Its events go to the address, if there is
// one.
func (p Program) head(a *enginepb.Assignment, events string) (*exec.Cmd, error) {
	b := a.GetBackend()
	if st, err := regular.Stat(b.GetWeights()); err != nil || !st.IsDir() {
		if err := regular.Check(b.GetWeights()); err != nil {
			return nil, fmt.Errorf("weights: %w", err)
		}
	}
	command, err := p.command()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("python3", append([]string{"-c", keeper, command}, p.arguments(a, events)...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // the keeper's, when engine has gone
	// What the user has set comes later, and counts.
	cmd.Env = append([]string{
		"VLLM_HOST_IP=127.0.0.1", "GLOO_SOCKET_IFNAME=lo", // a replica's processes are on one node
		"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", // the model is here, and nothing is to be reported
	}, os.Environ()...)
	cmd.Env = append(cmd.Env, "OMP_NUM_THREADS="+strconv.Itoa(int(b.GetThreads())))
	return cmd, nil
}

// spareSeqs are the sequences beyond one a slot: a probe must not wait for an answer.
const spareSeqs = 1

// arguments are those that engine sets itself, then the user's: internal/backends
// keeps these from being the same.
func (p Program) arguments(a *enginepb.Assignment, events string) []string {
	b := a.GetBackend()
	host, port, _ := net.SplitHostPort(p.Address)
	number := func(n uint32) string { return strconv.Itoa(int(n)) }
	args := []string{
		"serve", b.GetWeights(), "--host", host, "--port", port, "--served-model-name", a.GetModel(),
		"--max-model-len", number(b.GetContextTokens()), "--max-num-seqs", number(b.GetSlots() + spareSeqs), "--enable-prompt-tokens-details",
	}
	for _, d := range []struct {
		name string
		n    uint32
	}{
		{"--tensor-parallel-size", b.GetTensorParallel()}, {"--pipeline-parallel-size", b.GetPipelineParallel()},
		{"--data-parallel-size", b.GetDataParallel()},
	} {
		if d.n > 1 {
			args = append(args, d.name, number(d.n))
		}
	}
	if events != "" {
		args = append(args, "--kv-events-config",
			fmt.Sprintf(`{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://%s"}`, events))
	}
	return append(args, b.GetArgs()...)
}
