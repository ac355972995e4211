// Package llamacpp is all that engine knows of llama.cpp: how its server and its
// RPC shards are started, asked for health and tokens, and what its answers say of
// usage and errors.
//
// Called by supervise (commands, readiness, probes) and api (usage, errors). Its
// one rule: llama.cpp's own forms go no further than this package.
package llamacpp

import (
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
)

// glue is run by the interpreter with llama.cpp's Python binding; it is fed to
// its standard input, so that nothing has to be written anywhere.
//
//go:embed glue.py
var glue string

// cacheMiB bounds llama.cpp's cache of idle prompts in host memory.
const cacheMiB = 256

// mostBatch bounds a batch, in tokens. It is llama.cpp's own default: a larger one has
// running streams wait longer for every long prompt, and an input of embeddings takes
// memory for each of its tokens.
const mostBatch = 2048

// batch is how many tokens the server works on at once. An input of embeddings, whose
// tokens are pooled, must fit into one batch.
func batch(a *enginepb.Assignment) uint32 {
	return min(a.GetBackend().GetContextTokens(), mostBatch)
}

// Programs says with what llama.cpp is run on this node, and where it listens.
type Programs struct {
	// Runtime is the folder that set-up made: xllamacpp and libggml-rpc.so.
	Runtime string
	// LlamaServer and RPCServer are native programs used instead of the runtime;
	// empty: the runtime.
	LlamaServer, RPCServer string
	// BackendAddress and ShardAddress are "ip:port".
	BackendAddress, ShardAddress string
	// StateFolder is where the server saves what its slots have; empty: nowhere.
	StateFolder string
	// Ways returns for each stage where the head reaches its shard; nil: where the
	// assignment says.
	Ways func(*enginepb.Assignment) ([]string, error)
}

// config is what the glue is given, as JSON.
type config struct {
	Runtime       string  `json:"runtime"`
	Address       string  `json:"address"`
	Threads       uint32  `json:"threads"`
	Weights       string  `json:"weights,omitempty"`
	Model         string  `json:"model,omitempty"`
	Slots         uint32  `json:"slots,omitempty"`
	ContextTokens uint32  `json:"context_tokens,omitempty"`
	BatchTokens   uint32  `json:"batch_tokens,omitempty"`
	HTTPThreads   uint32  `json:"http_threads,omitempty"`
	CacheMiB      int     `json:"cache_mib,omitempty"`
	StateFolder   string  `json:"state_folder,omitempty"`
	Shards        []stage `json:"shards"`
}

type stage struct {
	Address string  `json:"address"`
	Share   float32 `json:"share"`
}

// shard returns the command of this node's RPC shard.
func (p Programs) shard(a *enginepb.Assignment) (*exec.Cmd, error) {
	threads := a.GetBackend().GetThreads()
	if p.RPCServer == "" {
		return p.python("worker", config{Runtime: p.Runtime, Address: p.ShardAddress, Threads: threads, Shards: []stage{}})
	}
	host, port, _ := cutAddress(p.ShardAddress)
	return native(p.RPCServer, "-H", host, "-p", port, "-t", strconv.Itoa(int(threads))), nil
}

// head returns the command of the server that answers for the whole replica.
func (p Programs) head(a *enginepb.Assignment) (*exec.Cmd, error) {
	if err := readable(a.GetBackend().GetWeights()); err != nil {
		return nil, fmt.Errorf("weights: %w", err)
	}
	ways, err := p.ways(a)
	if err != nil {
		return nil, err
	}
	if p.LlamaServer == "" {
		return p.python("server", p.config(a, ways))
	}
	return native(p.LlamaServer, arguments(p.config(a, ways))...), nil
}

// ways returns the addresses of the shards; none: the head has it all.
func (p Programs) ways(a *enginepb.Assignment) ([]string, error) {
	switch {
	case len(a.GetStages()) == 1:
		return nil, nil
	case p.Ways != nil:
		return p.Ways(a)
	}
	var all []string
	for _, s := range a.GetStages() {
		all = append(all, s.GetShardAddress())
	}
	return all, nil
}

// spareThreads are the backend's HTTP threads beyond one a slot.
const spareThreads = 12

func (p Programs) config(a *enginepb.Assignment, ways []string) config {
	b := a.GetBackend()
	c := config{
		Runtime: p.Runtime, Address: p.BackendAddress, Threads: b.GetThreads(),
		Weights: b.GetWeights(), Model: a.GetModel(), Slots: b.GetSlots(), ContextTokens: b.GetContextTokens(),
		BatchTokens: batch(a),
		// A thread serves a connection for as long as it is kept alive. With fewer
		// than connections (one a slot, probes, and scrapes of slots and metrics),
		// a request can starve behind idle ones for many seconds.
		HTTPThreads: b.GetSlots() + spareThreads, CacheMiB: cacheMiB, Shards: []stage{},
	}
	if p.StateFolder != "" { // the server takes it as it is, and puts names behind it
		c.StateFolder = filepath.Clean(p.StateFolder) + string(filepath.Separator)
	}
	for i, address := range ways {
		c.Shards = append(c.Shards, stage{Address: address, Share: a.GetStages()[i].GetShare()})
	}
	return c
}

func (p Programs) python(mode string, c config) (*exec.Cmd, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("%s's configuration: %w", mode, err)
	}
	cmd := native("python3", "-", mode, string(text))
	cmd.Stdin = strings.NewReader(glue)
	return cmd, nil
}

// native returns a command in an environment where llama.cpp's aborts are quick:
// it starts a debugger to print a trace otherwise.
func native(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GGML_NO_BACKTRACE=1")
	return cmd
}

// arguments says to llama-server what the glue says to the binding.
func arguments(c config) []string {
	host, port, _ := cutAddress(c.Address)
	threads, batch := strconv.Itoa(int(c.Threads)), strconv.Itoa(int(c.BatchTokens))
	args := []string{
		"-m", c.Weights, "--alias", c.Model, "--host", host, "--port", port,
		"-np", strconv.Itoa(int(c.Slots)), "-c", strconv.Itoa(int(c.ContextTokens * c.Slots)), "-b", batch, "-ub", batch,
		"-t", threads, "-tb", threads, "--threads-http", strconv.Itoa(int(c.HTTPThreads)),
		"--cache-ram", strconv.Itoa(c.CacheMiB), "--embeddings", "--pooling", "mean", "-fa", "on",
		"--jinja", "--metrics", "--slots", "--no-warmup", "--no-webui", "--fit", "off",
	}
	if c.StateFolder != "" {
		args = append(args, "--slot-save-path", c.StateFolder)
	}
	if len(c.Shards) == 0 {
		return args
	}
	var addrs, split []string
	for _, s := range c.Shards {
		addrs = append(addrs, s.Address)
		split = append(split, strconv.FormatFloat(float64(s.Share), 'g', -1, 32))
	}
	return append(args, "--rpc", strings.Join(addrs, ","), "-ngl", "99", "-ts", strings.Join(split, ","))
}

// Flags adds the flags that say with what llama.cpp is run.
func (p *Programs) Flags(fs *flag.FlagSet) {
	fs.StringVar(&p.Runtime, "runtime", os.Getenv("MILLRACE_RUNTIME"), "`folder` with llama.cpp's binding and RPC plugin (default $MILLRACE_RUNTIME)")
	fs.StringVar(&p.LlamaServer, "llama-server", "", "`path` of a llama-server of your own, instead of the llama.cpp in -runtime; needs -rpc-server, too")
	fs.StringVar(&p.RPCServer, "rpc-server", "", "`path` of the ggml-rpc-server of the same build")
}

// Given reports whether any flag says with what llama.cpp is run.
func (p Programs) Given() bool { return p.Runtime != "" || p.LlamaServer != "" || p.RPCServer != "" }

// Check says what keeps this node from running llama.cpp, if it is to; nil is nothing.
func (p Programs) Check() error {
	err := p.check()
	if !p.Given() || err == nil {
		return nil
	}
	return &obs.Hint{Err: err, Next: "run `millrace up`, which fetches llama.cpp, and set -runtime to its folder, or name programs of your own with -llama-server and -rpc-server"}
}

func (p Programs) check() error {
	if p.LlamaServer != "" && p.RPCServer != "" {
		return nil
	}
	for _, part := range []string{filepath.Join("xllamacpp", "__init__.py"), "libggml-rpc.so"} {
		if _, err := os.Stat(filepath.Join(p.Runtime, part)); err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
	}
	if _, err := exec.LookPath("python3"); err != nil {
		return fmt.Errorf("python: %w", err)
	}
	return nil
}
