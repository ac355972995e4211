package backends

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// why says why an argument is engine's own to set.
const (
	whyAddress  = "engine chooses where the server listens"
	whyTLS      = "engine asks the server on loopback, without TLS, keys and prefixes"
	whyOneNode  = "a replica is one process group on one node"
	whyMeasured = "engine sets it, to know what was cached"
)

// vllmOwn are the arguments that engine sets itself, or that would break what it
// relies on, and why. Short forms are as vLLM has them.
var vllmOwn = map[string]string{
	"--host": whyAddress, "--port": whyAddress, "--uds": whyAddress,
	"--model": "it is spec.weights", "--served-model-name": "it is the model's name",
	"--config":               "a file could set any argument that is refused here; name them in args",
	"--max-model-len":        "it is backend.contextTokens",
	"--max-num-seqs":         "it is backend.slots",
	"--tensor-parallel-size": "it is backend.tensorParallel", "-tp": "it is backend.tensorParallel",
	"--pipeline-parallel-size": "it is backend.pipelineParallel", "-pp": "it is backend.pipelineParallel",
	"--data-parallel-size": "it is backend.dataParallel", "-dp": "it is backend.dataParallel",
	"--kv-events-config": "engine sets it, to know what the KV cache holds", "--enable-prompt-tokens-details": whyMeasured,
	"--api-key": whyTLS, "--root-path": whyTLS, "--ssl-keyfile": whyTLS, "--ssl-certfile": whyTLS, "--ssl-ca-certs": whyTLS, "--ssl-cert-reqs": whyTLS,
	"--headless": whyOneNode, "--nnodes": whyOneNode, "-n": whyOneNode, "--node-rank": whyOneNode, "-r": whyOneNode,
	"--master-addr": whyOneNode, "--master-port": whyOneNode, "--distributed-executor-backend": whyOneNode, "--grpc": "engine speaks HTTP",
	"--api-server-count": whyOneNode, "-asc": whyOneNode,
	"--data-parallel-size-local": whyOneNode, "-dpl": whyOneNode, "--data-parallel-address": whyOneNode, "-dpa": whyOneNode,
	"--data-parallel-rpc-port": whyOneNode, "-dpp": whyOneNode, "--data-parallel-rank": whyOneNode, "-dpn": whyOneNode,
	"--data-parallel-start-rank": whyOneNode, "-dpr": whyOneNode, "--data-parallel-external-lb": whyOneNode, "-dpe": whyOneNode,
	"--data-parallel-hybrid-lb": whyOneNode, "-dph": whyOneNode, "--data-parallel-supervisor": whyOneNode,
}

// vllmArgs refuses arguments that engine sets itself, by name.
func (f *faults) vllmArgs(args []string) {
	if len(args) > maxArgs {
		f.add(Args, "%d arguments; must be ≤ %d", len(args), maxArgs)
		return
	}
	for i, arg := range args {
		text := ""
		switch why := vllmWhy(arg); {
		case utf8.RuneCountInString(arg) > maxArg:
			text = "must be ≤ 2048 characters"
		case strings.ContainsFunc(arg, unicode.IsControl):
			text = "must have no control characters"
		case i == 0 && !strings.HasPrefix(arg, "-"), arg == "--":
			text = "must begin with an argument's name, such as --dtype"
		case why != "":
			text = "must be left out: " + why
		default:
			continue
		}
		f.add(Args, "%.80q; %s", arg, text)
		(*f)[len(*f)-1].Index = i
	}
}

// vllmWhy returns why an argument is refused; "": it is not. vLLM takes "_" for "-"
// in names, "--name.key" for a part of a JSON value, the beginning of a name for the
// whole, and "-n2" for "-n 2".
func vllmWhy(arg string) string {
	name, _, _ := strings.Cut(arg, "=")
	if !strings.HasPrefix(name, "--") {
		if why := vllmOwn[name]; why != "" || len(name) < 3 {
			return why
		}
		return vllmOwn[name[:2]]
	}
	name, _, _ = strings.Cut(name, ".")
	name = strings.ReplaceAll(name, "_", "-")
	if why, ok := vllmOwn[name]; ok || len(name) < len("--xx") {
		return why
	}
	var whole []string
	for own := range vllmOwn {
		if strings.HasPrefix(own, name) {
			whole = append(whole, own)
		}
	}
	if len(whole) == 0 {
		return ""
	}
	own := slices.Min(whole)
	return "it is short for " + own + ", and " + vllmOwn[own]
}

// HasArg reports whether one of a server's arguments is that of a name.
func HasArg(args []string, name string) bool {
	for _, arg := range args {
		got, _, _ := strings.Cut(arg, "=")
		if strings.ReplaceAll(got, "_", "-") == name {
			return true
		}
	}
	return false
}
