package mesh

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/envoy"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/drained"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/wire"
)

// workers is Envoy's worker threads: more than one, so that no request waits
// for another's, and few, because the models need the cores.
const workers = 2

// Spec says how to run one process of the mesh.
type Spec struct {
	// Name is unique in the mesh, for example "engine@node-a" or, of several,
	// "extproc@2".
	Name string
	// Role is envoy, xds, extproc, nodeagent or engine.
	Role string
	// Node is empty for what exists once.
	Node string
	// Path is the program, Args its arguments.
	Path string
	Args []string
	// Env is what it has in its environment beside ours, "NAME=value".
	Env []string `json:",omitempty"`
	// Addrs are "ip:port" by use: http, grpc, admin, metrics.
	Addrs map[string]string
	// Log is the file that gets its output.
	Log string
	// Phase orders start and stop: a process is started after all of a lower
	// phase, and stopped before them.
	Phase int
}

// Phases of the start. Envoy comes last, when there is somebody to ask and
// somebody to send to, and leaves first.
const (
	phaseControl = iota
	phaseNodes
	phaseGateway
)

// AccessLog is the name of Envoy's access log in the folder of logs.
const AccessLog = "access.log"

// Plan is what a mesh consists of.
type Plan struct {
	Specs []Spec
	// Listen is "ip:port" of the OpenAI API, XDS of Fleet and ADS, Admin of Envoy.
	Listen, XDS, Admin string
	// Page is "ip:port" of the live page.
	Page string
	// Engines are the gRPC addresses of the engines, by node.
	Engines map[string]string
	// Dir and Logs are folders, Config, Bootstrap and AccessLog files.
	Dir, Logs, Config, Bootstrap, AccessLog string
	// HTTPS is "ip:port" where clients come by TLS; empty: nowhere.
	HTTPS string
	// TLS is the folder of the certificates; empty: cleartext.
	TLS string
	// ProbeKey is the key of our own probes.
	ProbeKey string `json:"-"`
}

// Input is all that a plan depends on.
type Input struct {
	Listen string
	Dir    string
	Nodes  int
	// ExtProcs is how many extprocs Envoy asks in turn; at least 1.
	ExtProcs int
	// Ports are free ones: portsNeeded(Nodes, ExtProcs).
	Ports []int
	// Programs is the folder of our programs, Envoy its program.
	Programs, Envoy string
	// Runtime is set-up's folder with llama.cpp; LlamaServer and RPCServer are
	// the user's own programs. One or the other is empty.
	Runtime, LlamaServer, RPCServer string
	// VLLM is the user's own vLLM; empty: none.
	VLLM string
	// Traces is "otlp://host:port" or empty.
	Traces string
	// Capacity is by node, in tokens per second.
	Capacity map[string]float64
	// Memory is by node, in bytes.
	Memory map[string]config.Bytes
	// TLS is the folder of the mesh's certificates; empty: cleartext.
	TLS string
	// HTTPS is as in Options.
	HTTPS HTTPS
	// APIKeys are the files with the keys that clients need, "file,…"; empty: none.
	APIKeys string
	// Records is where responses and conversations are stored.
	Records Records
	// Snapshots is how much KV state of conversations is saved.
	Snapshots Snapshots
	// ProbeKey marks our own probes for the extprocs; it is on no command line.
	ProbeKey string
}

const (
	portsOnce       = 3 // xds 2, Envoy's admin
	portsPerExtProc = 2
	portsPerNode    = 6 // engine 5, nodeagent 1
)

// portsNeeded returns how many ports a mesh of that many nodes and extprocs takes.
func portsNeeded(nodes, extprocs int) int {
	return portsOnce + extprocs*portsPerExtProc + nodes*portsPerNode
}

// NewPlan lays out the processes. It does no I/O.
func NewPlan(in Input) Plan {
	b := planner{in: in, ports: in.Ports}
	logs := filepath.Join(in.Dir, "logs")
	b.plan = Plan{
		Listen: in.Listen, Dir: in.Dir, TLS: in.TLS, HTTPS: in.HTTPS.Listen, ProbeKey: in.ProbeKey, Logs: logs,
		Config:    filepath.Join(in.Dir, "config.yaml"),
		Bootstrap: filepath.Join(in.Dir, "envoy.json"),
		AccessLog: filepath.Join(logs, AccessLog),
		Engines:   map[string]string{},
	}
	b.control()
	for _, node := range nodeNames(in.Nodes) {
		b.node(node)
	}
	b.share(nodeNames(in.Nodes))
	b.gateway()
	return b.plan
}

// nodeNames returns node-a, node-b, … node-z, node-aa, ….
func nodeNames(n int) []string {
	var names []string
	for i := range n {
		letters := string(rune('a' + i%26))
		if i >= 26 {
			letters = string(rune('a'+i/26-1)) + letters
		}
		names = append(names, "node-"+letters)
	}
	return names
}

type planner struct {
	in    Input
	ports []int // not taken yet
	plan  Plan
}

// addr takes the next port.
func (b *planner) addr() string {
	port := b.ports[0]
	b.ports = b.ports[1:]
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// add appends a process; flags are pairs of name and value, those without a
// value are left out.
func (b *planner) add(s Spec, flags ...string) {
	if s.Name == "" {
		s.Name = s.Role
	}
	if s.Node != "" {
		s.Name += "@" + s.Node
	}
	if s.Path == "" {
		s.Path = filepath.Join(b.in.Programs, s.Role)
	}
	for i := 0; i < len(flags); i += 2 {
		if flags[i+1] != "" {
			s.Args = append(s.Args, flags[i], flags[i+1])
		}
	}
	if b.in.TLS != "" && s.Role != "envoy" {
		f := mtls.In(b.in.TLS, mtls.ID{Role: mtls.Role(s.Role), Node: s.Node})
		s.Args = append(s.Args, "-tls-cert", f.Cert, "-tls-key", f.Key, "-tls-ca", f.CA)
	}
	s.Log = filepath.Join(b.plan.Logs, s.Name+".log")
	b.plan.Specs = append(b.plan.Specs, s)
}

func (b *planner) control() {
	b.plan.XDS = b.addr()
	metrics := b.addr()
	b.plan.Page = metrics
	var pickers []Spec
	var asked []string
	for i := range b.in.ExtProcs {
		s := Spec{Role: "extproc", Phase: phaseNodes, Env: []string{wire.ProbeKey + "=" + b.in.ProbeKey}, Addrs: map[string]string{"grpc": b.addr(), "metrics": b.addr()}}
		if b.in.ExtProcs > 1 {
			s.Name = fmt.Sprintf("extproc@%d", i+1)
		}
		pickers, asked = append(pickers, s), append(asked, s.Addrs["grpc"])
	}
	without := ""
	if b.in.APIKeys != "" {
		without = "refuse"
	}
	b.add(Spec{Role: "xds", Phase: phaseControl, Addrs: map[string]string{"grpc": b.plan.XDS, "metrics": metrics}},
		"-listen", b.plan.XDS, "-metrics", metrics, "-config", b.plan.Config, "-drained", drained.In(b.in.Dir), "-gateway", b.in.Listen,
		"-extproc", strings.Join(asked, ","), "-access-log", b.plan.AccessLog, "-envoy-tls", b.in.TLS, "-traces", b.in.Traces,
		"-https", b.in.HTTPS.Listen, "-https-cert", b.in.HTTPS.Cert, "-https-key", b.in.HTTPS.Key,
		"-without-extproc", without, "-page-chat", reachable(b.in.Listen))
	for _, s := range pickers {
		b.add(s, "-listen", s.Addrs["grpc"], "-metrics", s.Addrs["metrics"], "-xds", b.plan.XDS, "-traces", b.in.Traces, "-api-keys", b.in.APIKeys)
	}
}

func (b *planner) node(node string) {
	http, grpc, metrics, shard, backend := b.addr(), b.addr(), b.addr(), b.addr(), b.addr()
	b.plan.Engines[node] = grpc
	b.add(Spec{Role: "engine", Node: node, Phase: phaseNodes, Addrs: map[string]string{"http": http, "grpc": grpc, "metrics": metrics}},
		append([]string{"-node", node, "-http", http, "-grpc", grpc, "-metrics", metrics, "-shard", shard, "-backend", backend,
			"-logs", b.plan.Logs, "-runtime", b.in.Runtime, "-llama-server", b.in.LlamaServer, "-rpc-server", b.in.RPCServer, "-vllm", b.in.VLLM,
			"-traces", b.in.Traces}, slices.Concat(b.in.Records.flags(b.in.Dir, node), b.in.Snapshots.flags(b.in.Dir, node))...)...)
	agent, capacity, memory := b.addr(), "", ""
	if v := b.in.Capacity[node]; v > 0 {
		capacity = strconv.FormatFloat(v, 'f', -1, 64)
	}
	if v := b.in.Memory[node]; v > 0 {
		memory = strconv.FormatInt(int64(v), 10)
	}
	b.add(Spec{Role: "nodeagent", Node: node, Phase: phaseNodes, Addrs: map[string]string{"metrics": agent}},
		"-node", node, "-engine", grpc, "-xds", b.plan.XDS, "-metrics", agent, "-capacity", capacity, "-memory", memory)
}

func (b *planner) gateway() {
	b.plan.Admin = b.addr()
	b.add(Spec{
		Role: "envoy", Path: b.in.Envoy, Phase: phaseGateway,
		Args:  envoy.Args(b.plan.Bootstrap, workers),
		Addrs: map[string]string{"http": b.in.Listen, "admin": b.plan.Admin},
	})
}
