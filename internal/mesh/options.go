package mesh

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/keypair"
	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/models"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/trust"
)

// Most processes of one machine.
const (
	maxNodes    = 64
	maxExtProcs = 16
)

// How long the certificates of a mesh may live: short enough that a stolen one is soon
// worth nothing, long enough to be replaced on a busy machine.
const (
	minTLSLife = 10 * time.Second
	maxTLSLife = 30 * 24 * time.Hour
)

// Options is what the user says of a mesh.
type Options struct {
	// Listen is "ip:port" of the OpenAI API; port 0 takes a free one.
	Listen string
	// Dir is the folder of the mesh: state.json, logs, the configuration in force.
	Dir string
	// Nodes is how many nodes to run, 1 to 64.
	Nodes int
	// ExtProcs is how many extprocs to run, 1 to 16.
	ExtProcs int
	// Config is the user's configuration file; empty: none.
	Config string
	// Traces is "otlp://host:port", a file to write, or empty.
	Traces string
	// Cache, Envoy, LlamaServer, RPCServer and Model are as in setup.Options.
	Cache, Envoy, LlamaServer, RPCServer, Model string
	// Models are those asked for by name, as package models reads them; none: the
	// configuration says all. From is where they may come from.
	Models []string
	From   models.Options
	// OnDemand is whether each of Models is loaded for its first request alone. Without it
	// those that have no node of their own are.
	OnDemand bool
	// VLLM is the user's own vLLM, for backends of that kind: its command, or a folder
	// with a Python environment; empty: none.
	VLLM string
	// Capacity is the operator's figure for a node in tokens per second, by node.
	Capacity map[string]float64
	// Memory is what models may take on a node, in bytes, by node. A node that is not named
	// has its part of nine tenths of the machine's.
	Memory map[string]config.Bytes
	// TLS is whether every link between the programs is mutual TLS, by certificates of
	// the mesh's own that live as long as TLSLife and are replaced in time.
	TLS     bool
	TLSLife time.Duration
	// APIKeys is a file with hashes of the API keys that clients need; empty: they need none.
	APIKeys string
	// Records is where responses and conversations are stored.
	Records Records
	// Snapshots is how much KV state of conversations is saved.
	Snapshots Snapshots
	// HTTPS is where clients come by TLS, besides Listen.
	HTTPS HTTPS
	// Programs is the folder with xds, extproc, nodeagent and engine.
	Programs string
	// Out gets what a script waits for: the line "ready http://ip:port".
	Out io.Writer
	// Progress gets one line for each thing worth knowing meanwhile.
	Progress io.Writer
}

// HTTPS is a public address with TLS; the zero value: there is none.
type HTTPS struct {
	// Listen is its "ip:port".
	Listen string
	// Cert and Key are files in PEM. They may be replaced, by renaming.
	Cert, Key string
}

// complete finds the address, and returns what is wrong; the certificate is read to know that
// it is one.
func (h *HTTPS) complete() error {
	if *h == (HTTPS{}) {
		return nil
	}
	if h.Listen == "" || h.Cert == "" || h.Key == "" {
		return errors.New("-https, -https-cert and -https-key; must be given together")
	}
	var errs []error
	if at, err := resolve(h.Listen); err != nil {
		errs = append(errs, fmt.Errorf("-https %q; must be an address such as :8443: %w", h.Listen, err))
	} else {
		h.Listen = at
	}
	if _, err := keypair.Read(h.Cert, h.Key); err != nil {
		errs = append(errs, fmt.Errorf("-https-cert %s, -https-key %s: %w", h.Cert, h.Key, err))
	}
	return errors.Join(errs...)
}

// complete returns o with absolute paths, or everything that is wrong with it.
func (o Options) complete() (Options, error) {
	var errs []error
	if at, err := resolve(o.Listen); err != nil {
		errs = append(errs, fmt.Errorf("-listen %q; must be an address such as 127.0.0.1:10000, localhost:10000, or :10000 for all interfaces: %w", o.Listen, err))
	} else {
		o.Listen = at
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("-nodes %d; must be 1 to %d", o.Nodes, maxNodes))
	}
	if o.ExtProcs < 1 || o.ExtProcs > maxExtProcs {
		errs = append(errs, fmt.Errorf("-extprocs %d; must be 1 to %d", o.ExtProcs, maxExtProcs))
	}
	if o.TLS && (o.TLSLife < minTLSLife || o.TLSLife > maxTLSLife) {
		errs = append(errs, fmt.Errorf("-tls-life %s; must be %s to %s", o.TLSLife, minTLSLife, maxTLSLife))
	}
	if strings.Contains(o.Traces, "://") {
		_, err := obs.ParseTarget(o.Traces)
		errs = append(errs, err)
	}
	errs = append(errs, o.checkNodes("-capacity", slices.Collect(maps.Keys(o.Capacity))), o.checkNodes("-memory", slices.Collect(maps.Keys(o.Memory))), o.HTTPS.complete(), o.Records.complete(), o.Snapshots.check())
	if err := checkVLLM(o.VLLM); err != nil {
		errs = append(errs, fmt.Errorf("-vllm: %w", err))
	}
	if o.APIKeys != "" {
		if _, err := keys.Open(slog.New(slog.DiscardHandler), o.APIKeys); err != nil {
			errs = append(errs, fmt.Errorf("-api-keys: %w", err))
		}
	}
	for _, path := range []*string{&o.Dir, &o.Config, &o.LlamaServer, &o.RPCServer, &o.VLLM, &o.HTTPS.Cert, &o.HTTPS.Key, &o.APIKeys} {
		errs = append(errs, absolute(path))
	}
	if err := errors.Join(errs...); err != nil {
		return o, program.Usage(err)
	}
	return o, nil
}

// checkVLLM finds a path at which there is no vLLM: neither the command nor a Python
// environment that has it.
func checkVLLM(path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		path = filepath.Join(path, "bin", "vllm")
		st, err = os.Stat(path)
	}
	if err == nil && (st.IsDir() || st.Mode()&0o111 == 0) {
		err = fmt.Errorf("%s: not an executable file", path)
	}
	return err
}

func absolute(path *string) (err error) {
	if *path != "" {
		*path, err = filepath.Abs(*path)
	}
	return err
}

// checkNodes finds nodes that there are not among those that a flag names.
func (o Options) checkNodes(flag string, names []string) error {
	known := nodeNames(o.Nodes)
	var errs []error
	for _, node := range slices.Sorted(slices.Values(names)) {
		if !slices.Contains(known, node) {
			errs = append(errs, fmt.Errorf("%s %s: no such node; there are %s", flag, node, strings.Join(known, ", ")))
		}
	}
	return errors.Join(errs...)
}

// Setup returns what set-up needs to know; noModel says whether no model is the
// one that it fetches.
func (o Options) Setup(noModel bool) setup.Options {
	return setup.Options{
		Cache: o.Cache, Envoy: o.Envoy, LlamaServer: o.LlamaServer, RPCServer: o.RPCServer,
		Model: o.Model, NoModel: noModel, Out: o.Progress,
	}
}

// ParseCapacity reads "node-a=100,node-c=50".
func ParseCapacity(text string) (map[string]float64, error) {
	return byNode(text, "TOKENS_PER_SECOND, the figure 0 or from 0.001 to 1e9", func(figure string) (float64, bool) {
		v, err := trust.Number(figure, 0, 1e9)
		return v, err == nil && (v == 0 || v >= 1e-3)
	})
}

// ParseMemory reads "node-a=1Gi,node-c=512Mi".
func ParseMemory(text string) (map[string]config.Bytes, error) {
	return byNode(text, "SIZE, such as node-a=2Gi, from 1 byte to 1048576Gi", func(figure string) (v config.Bytes, ok bool) {
		err := v.UnmarshalText([]byte(figure))
		return v, err == nil && v >= 1 && v <= 1<<50
	})
}

// byNode reads "node=value,…". read says whether a value is one of what.
func byNode[V any](text, what string, read func(string) (V, bool)) (map[string]V, error) {
	all := map[string]V{}
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		node, figure, _ := strings.Cut(part, "=")
		v, ok := read(figure)
		if !ok {
			return nil, fmt.Errorf("%q; must be NODE=%s", part, what)
		}
		if _, twice := all[node]; twice {
			return nil, fmt.Errorf("%q; the node is named twice", part)
		}
		all[node] = v
	}
	return all, nil
}
