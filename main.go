// Command millrace is what a person runs: it brings up a mesh on one machine,
// shows it, talks to it, and says what a machine lacks for it.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/chat"
	"millrace.dev/millrace/internal/complete"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/doctor"
	"millrace.dev/millrace/internal/explain"
	"millrace.dev/millrace/internal/gateway"
	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/mesh"
	"millrace.dev/millrace/internal/models"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/plan"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/setup"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/status"
	"millrace.dev/millrace/internal/traces"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/usable"
)

// command is a word after millrace.
type command struct {
	name, does string
	run        func(context.Context, []string, files) error
}

// commands are all there are; help lists them in this order. It is a function
// because help is one of them.
func commands() []command {
	return []command{
		{"up", "start a mesh on this machine; Ctrl-C ends it", up},
		{"down", "end a mesh, and wait until all of its processes have ended", down},
		{"logs", "show the log of one process of the mesh; without a name, list the logs", logs},
		{"status", "show what runs, how well, and what is wrong", showStatus},
		{"events", "show what has happened to the mesh since its xds was started", showEvents},
		{"drain", "empty a node: it ends what runs, and gets no new requests, until it is undrained", drain},
		{"undrain", "take a drained node back", undrain},
		{"explain", "show why a request went where it went, and how it ended", explainRequest},
		{"trace", "show what the time of a request went to, part by part", traceRequest},
		{"chat", "chat with a model of the mesh, in the terminal or from a script", talk},
		{"gateway", "sidecar of an Envoy in a Pod: report its readiness, and drain it before it ends", gatewayOf},
		{"plan", "show how models would lie on nodes, and why, and start nothing", planOf},
		{"models", "list models by name, fetch them from mirrors (pull), remove them (rm)", modelsOf},
		{"key", "make an API key for a tenant, and the line for the file of -api-keys", newKey},
		{"check", "check whether this machine has what a mesh needs", check},
		{"identity", "sidecar of a Pod: get its programs' certificates, and renew them", keepIdentity},
		{"setup", "fetch what a mesh needs (Envoy, llama.cpp, a model), and start nothing", fetch},
		{"install-models", "copy the default model into a folder that engines and extprocs share", installModels},
		{"completion", "print a completion script for bash, zsh or fish", completion},
		{"version", "print the version, with the commit", version},
		{"help", "print this", help},
	}
}

func main() {
	os.Exit(program.Main("millrace", func(ctx context.Context, args []string, _ io.Writer) error {
		return run(ctx, args, files{os.Stdin, os.Stdout, os.Stderr})
	}))
}

// files are the standard ones, or a test's.
type files struct {
	in       io.Reader
	out, err io.Writer
}

// run obeys the command line.
func run(ctx context.Context, args []string, std files) error {
	if len(args) == 0 {
		_ = help(ctx, nil, files{out: std.err})
		return program.Usage(errors.New("a command is missing"))
	}
	name := args[0]
	switch name {
	case "-h", "-help", "--help":
		name = "help"
	case "-version", "--version":
		name = "version"
	}
	var known []string
	for _, c := range commands() {
		if c.name == name {
			return c.run(ctx, args[1:], std)
		}
		known = append(known, c.name)
	}
	if near := nearest.Of(name, known); near != "" {
		return program.Usage(fmt.Errorf("unknown command %q; did you mean %s?", name, near))
	}
	return program.Usage(fmt.Errorf("unknown command %q; must be one of %s", name, strings.Join(known, ", ")))
}

// unknownWord says what is wrong with the word behind a command.
func unknownWord(word string, known []string) string {
	switch near := nearest.Of(word, known); {
	case word == "":
		return "a word is missing"
	case slices.Contains(known, word):
		return word + " wants other arguments"
	case near != "":
		return fmt.Sprintf("unknown %q, did you mean %s?", word, near)
	default:
		return fmt.Sprintf("unknown %q", word)
	}
}

// newFlags returns the flags of a command.
func newFlags(command string, std files) *program.Flags {
	return program.NewFlags("millrace "+command, std.out)
}

// defaultDir is the folder of a mesh when none is named.
const defaultDir = ".millrace"

// setupFlags adds the flags of everything that checks what a mesh needs.
func setupFlags(fs *program.Flags, o *mesh.Options) {
	fs.StringVar(&o.Cache, "cache", "", "`folder` with what set-up fetches (default $MILLRACE_CACHE, else .cache of the checkout)")
	fs.StringVar(&o.Envoy, "envoy", "", "`path` of an envoy of your own, instead of the fetched one")
	fs.StringVar(&o.LlamaServer, "llama-server", "", "`path` of a llama-server of your own; -rpc-server goes with it")
	fs.StringVar(&o.RPCServer, "rpc-server", "", "`path` of the ggml-rpc-server of the same build")
	fs.Func("model", "`NAME` of a model, org/repo:Q4_K_M, a URL or a path; several: give it again (default smollm2). ID=NAME serves it by that id", func(text string) error {
		o.Models = append(o.Models, text)
		return nil
	})
	fs.BoolVar(&o.OnDemand, "on-demand", false, "load each -model when it is asked for, not at the start; without it those that have no node of their own are")
	sourceFlags(fs, &o.From)
}

// sourceFlags adds the flags that say where models come from.
func sourceFlags(fs *program.Flags, from *models.Options) {
	*from = models.Environment()
	fs.Func("mirror", "`URL` of a server with repositories, such as https://hub.example.org; several are asked in turn (default $MILLRACE_MIRROR, $HF_ENDPOINT)", func(text string) error {
		from.Mirrors = append(slices.Clone(from.Mirrors), text)
		return nil
	})
	fs.StringVar(&from.Catalogue, "catalogue", from.Catalogue, "`file` with further names of models (default $MILLRACE_CATALOGUE)")
	fs.StringVar(&from.TokenFile, "token-file", from.TokenFile, "`file` with the token of the mirrors, or lines HOST TOKEN (default $MILLRACE_TOKEN_FILE)")
}

func up(ctx context.Context, args []string, std files) error {
	o := mesh.Options{Out: std.out, Progress: std.err}
	fs := newFlags("up", std)
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:10000", "`ip:port` of the OpenAI API; port 0 takes a free one")
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` for state.json, logs and the configuration in force")
	fs.IntVar(&o.Nodes, "nodes", 3, "how many nodes to run, each a nodeagent and an engine")
	fs.IntVar(&o.ExtProcs, "extprocs", 1, "how many extprocs to run, which Envoy asks in turn")
	fs.StringVar(&o.Config, "config", "", "`file` with Model and Policy objects; without it everything has a default")
	fs.StringVar(&o.Traces, "traces", "", "`file or otlp://host:port` that gets OpenTelemetry traces")
	fs.Func("capacity", "`node-a=100,node-c=50`: speed of nodes in tokens per second, by which requests are shared out, instead of the measured one", func(text string) (err error) {
		o.Capacity, err = mesh.ParseCapacity(text)
		return err
	})
	fs.Func("memory", "`node-a=1Gi,node-c=8Gi`: what models may take on nodes, by which they are laid out; left out: nine tenths of the machine's, shared", func(text string) (err error) {
		o.Memory, err = mesh.ParseMemory(text)
		return err
	})
	fs.StringVar(&o.VLLM, "vllm", "", "`path` of a vLLM of your own, a command or a Python environment, for backends of kind vllm")
	fs.StringVar(&o.APIKeys, "api-keys", "", "`file` with hashes of the API keys that clients need; millrace key makes them")
	fs.StringVar(&o.Records.Where, "records", mesh.RecordsInFiles, "`where` responses and conversations are stored: file, in files of the engines, off, or the URL of a Valkey or Redis server")
	fs.StringVar(&o.Records.PasswordFile, "records-password-file", "", "`file` with the password of that server")
	fs.StringVar(&o.Records.KeyFile, "records-key-file", "", "`file` with the key that they are sealed with, 16 to 256 bytes in hexadecimal, in base64 or as they are")
	fs.DurationVar(&o.Records.TTL, "records-ttl", 0, "how long they are kept after their last use (default 720h)")
	fs.TextVar(&o.Snapshots, "snapshots", mesh.DefaultSnapshots, "`size`, such as 2Gi, that each engine may need for what conversations have in the KV cache, saved after each turn; 0: nothing is saved")
	fs.StringVar(&o.HTTPS.Listen, "https", "", "`ip:port` where clients come by TLS, besides -listen; -https-cert and -https-key go with it")
	fs.StringVar(&o.HTTPS.Cert, "https-cert", "", "`file` with its certificate and chain, in PEM; replaced by renaming")
	fs.StringVar(&o.HTTPS.Key, "https-key", "", "`file` with the certificate's key")
	fs.BoolVar(&o.TLS, "tls", false, "have every link between the programs be mutual TLS, by certificates of the mesh's own")
	fs.DurationVar(&o.TLSLife, "tls-life", time.Hour, "how long these certificates live; they are replaced in time")
	setupFlags(fs, &o)
	only := fs.Bool("check", false, "check flags and configuration, and stop there")
	detach := fs.Bool("d", false, "let it run on in the background, and come back when it is ready; millrace down ends it")
	if err := fs.Read(args); err != nil {
		return err
	}
	if *only {
		if err := mesh.Check(o); err != nil {
			return err
		}
		if fs.Given("dir") { // else that of where it is started, which may be elsewhere
			if err := usable.NewFolder(o.Dir); err != nil {
				return program.Usage(fmt.Errorf("-dir: %w", err))
			}
		}
		fmt.Fprintln(std.out, "millrace: flags and configuration are in order")
		return nil
	}
	if *detach {
		args = slices.DeleteFunc(slices.Clone(args), func(a string) bool {
			name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
			return strings.HasPrefix(a, "-") && name == "d"
		})
		if err := mesh.Detach(ctx, o, args); err != nil {
			return fmt.Errorf("up: %w", err)
		}
		return nil
	}
	if err := mesh.Up(ctx, o); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	return nil
}

func down(ctx context.Context, args []string, std files) error {
	fs := newFlags("down", std)
	dir := fs.String("dir", defaultDir, "`folder` of the mesh")
	if err := fs.Read(args); err != nil {
		return err
	}
	return mesh.Down(ctx, *dir, std.out)
}

func logs(ctx context.Context, args []string, std files) (err error) {
	o := mesh.LogsOptions{Out: std.out}
	fs := newFlags("logs", std)
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` of the mesh")
	fs.BoolVar(&o.Follow, "f", false, "follow what is written from then on")
	fs.IntVar(&o.Lines, "n", 50, "how many of the last lines are shown")
	if o.Name, err = fs.ReadArgument(args, "NAME"); err != nil {
		return err
	}
	if o.Lines < 0 {
		return program.Usage(fmt.Errorf("logs: -n %d; must be ≥ 0", o.Lines))
	}
	return mesh.ShowLogs(ctx, o)
}

func showStatus(ctx context.Context, args []string, std files) error {
	o := status.Options{Out: std.out, Terminal: isTerminal(std.out), Width: columns(std.out)}
	fs := newFlags("status", std)
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` of the mesh")
	fs.BoolVar(&o.JSON, "json", false, "print JSON, with -watch one object a line")
	fs.BoolVar(&o.Watch, "watch", false, "look again every second")
	if err := fs.Read(args); err != nil {
		return err
	}
	return status.Run(ctx, o)
}

func showEvents(ctx context.Context, args []string, std files) error {
	o := status.Options{Out: std.out}
	fs := newFlags("events", std)
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` of the mesh")
	fs.BoolVar(&o.JSON, "json", false, "print JSON")
	if err := fs.Read(args); err != nil {
		return err
	}
	return status.Events(ctx, o)
}

func drain(ctx context.Context, args []string, std files) error {
	var o mesh.NodeOptions
	fs := newFlags("drain", std)
	fs.BoolVar(&o.Force, "force", false, "drain it although no other node serves a model: requests of that still come there")
	return ofNode(args, fs, &o, std, func() error { return mesh.DrainNode(ctx, o) })
}

func undrain(ctx context.Context, args []string, std files) error {
	var o mesh.NodeOptions
	return ofNode(args, newFlags("undrain", std), &o, std, func() error { return mesh.UndrainNode(ctx, o) })
}

// ofNode reads the command line of what is done to one node, and does it.
func ofNode(args []string, fs *program.Flags, o *mesh.NodeOptions, std files, do func() error) (err error) {
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` of the mesh")
	fs.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "how long to wait until it is done; it is done all the same. 0: don't wait")
	if o.Node, err = fs.ReadArgument(args, "NODE"); err != nil {
		return err
	}
	o.Out = std.out
	command := strings.TrimPrefix(fs.Name(), "millrace ")
	if o.Node == "" {
		return program.Usage(&obs.Hint{Err: fmt.Errorf("%s: NODE is missing", command), Next: "millrace status lists the nodes"})
	}
	if o.Timeout < 0 {
		return program.Usage(fmt.Errorf("%s: -timeout %s; must be ≥ 0", command, o.Timeout))
	}
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func explainRequest(ctx context.Context, args []string, std files) error {
	o := explain.Options{In: std.in, Out: std.out, Wait: explainWait}
	fs := newFlags("explain", std)
	last := fs.Bool("last", false, "explain the last request in the log, instead of one by its id")
	fs.StringVar(&o.Log, "log", "", "`file` with Envoy's access log, - for standard input (default: that of the mesh in -dir)")
	dir := fs.String("dir", defaultDir, "`folder` of the mesh")
	fs.BoolVar(&o.JSON, "json", false, "print JSON")
	id, err := fs.ReadArgument(args, "REQUEST-ID")
	if err != nil {
		return err
	}
	if *last == (id != "") {
		return program.Usage(&obs.Hint{Err: errors.New("explain: name a request: its REQUEST-ID, or -last"), Next: "the id is in the header x-request-id of the answer; its first characters will do"})
	}
	if o.ID = id; o.Log == "" {
		s, _, err := state.Read(*dir)
		if err != nil {
			return &obs.Hint{Err: fmt.Errorf("explain: %w", err), Next: "name the folder of a mesh with -dir, or an access log with -log"}
		}
		o.Log = filepath.Join(s.Logs, mesh.AccessLog)
	}
	return explain.Run(ctx, o)
}

// traceRequest shows the trace of a request, which the access log names by the request's id.
func traceRequest(ctx context.Context, args []string, std files) error {
	fs := newFlags("trace", std)
	last := fs.Bool("last", false, "show the last request in the log, instead of one by its id")
	dir := fs.String("dir", defaultDir, "`folder` of the mesh")
	asJSON := fs.Bool("json", false, "print JSON")
	file := fs.String("file", "", "`file` with traces, of millrace up -traces FILE (default: that of the mesh in -dir)")
	log := fs.String("log", "", "`file` with Envoy's access log (default: that of the mesh in -dir)")
	id, err := fs.ReadArgument(args, "REQUEST-ID")
	if err != nil {
		return err
	}
	if *last == (id != "") {
		return program.Usage(&obs.Hint{Err: errors.New("trace: name a request: its REQUEST-ID, or -last"), Next: "the id is in the header x-request-id of the answer; its first characters, or the trace's id, will do"})
	}
	if *file == "" || *log == "" {
		s, _, err := state.Read(*dir)
		if err != nil {
			return &obs.Hint{Err: fmt.Errorf("trace: %w", err), Next: "name the folder of a mesh with -dir, or its files with -file and -log"}
		}
		*file, *log = cmp.Or(*file, s.Traces), cmp.Or(*log, filepath.Join(s.Logs, mesh.AccessLog))
	}
	if *file == "" {
		return &obs.Hint{Err: errors.New("trace: the mesh keeps no traces in a file"), Next: "start it with millrace up -traces FILE"}
	}
	r, err := explain.Find(ctx, explain.Options{Log: *log, ID: id, Wait: explainWait})
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if r.Trace == "" {
		return &obs.Hint{Err: fmt.Errorf("trace: request %s was not sampled", r.RequestID), Next: "a client that sends traceparent decides itself: end it with -01"}
	}
	if err := traces.Show(ctx, *file, r.Trace, *asJSON, std.out); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}

// explainWait is how long the line of a request may be on its way to the log.
const explainWait = 2 * time.Second

func talk(ctx context.Context, args []string, std files) error {
	o := chat.Options{In: std.in, Out: std.out, Err: std.err, Interactive: isTerminal(std.in)}
	fs := newFlags("chat", std)
	fs.StringVar(&o.URL, "url", "", "`address` of the API (default: that of the mesh in -dir, else http://127.0.0.1:10000)")
	fs.StringVar(&o.Model, "model", "", "`id` of the model (default: the first that the API lists)")
	fs.IntVar(&o.MaxTokens, "max-tokens", 512, "longest answer, in tokens")
	fs.StringVar(&o.System, "system", "", "`text` of the system prompt")
	fs.Func("temperature", "how freely it chooses words, 0 to 2 (default: the model's own)", func(text string) error {
		v, err := trust.Number(text, 0, 2)
		o.Temperature = &v
		return err
	})
	ask := fs.String("ask", "", "`text` to ask, once, instead of what is typed")
	fs.DurationVar(&o.Wait, "wait", 0, "how long to try again while nobody answers")
	dir := fs.String("dir", defaultDir, "`folder` of the mesh")
	if err := fs.Read(args); err != nil {
		return err
	}
	if o.Key = os.Getenv("OPENAI_API_KEY"); o.Key == "" {
		own, _ := regular.Read(mesh.KeyFile(*dir), 1<<16) // there is none where none is needed
		o.Key = string(own)
	}
	if o.MaxTokens < 1 {
		return program.Usage(fmt.Errorf("chat: -max-tokens %d; must be ≥ 1", o.MaxTokens))
	}
	if o.URL == "" {
		o.URL = "http://127.0.0.1:10000"
		if s, running, err := state.Read(*dir); err == nil && running {
			o.URL = "http://" + s.Listen
		}
	}
	if *ask != "" {
		o.In, o.Interactive = strings.NewReader(*ask), false
	}
	return chat.Run(ctx, o)
}

// newKey prints a key, which is shown once, and what is to be kept of it.
func newKey(_ context.Context, args []string, std files) error {
	fs := newFlags("key", std)
	tenant := fs.String("tenant", "", "`name` of the tenant that the key is for; budgets are by tenant")
	if err := fs.Read(args); err != nil {
		return err
	}
	if *tenant == "" {
		return program.Usage(errors.New("key: -tenant is missing; set it to the name of the tenant that the key is for"))
	}
	key, line, err := keys.New(*tenant)
	if err != nil {
		return program.Usage(fmt.Errorf("key: -tenant: %w", err))
	}
	fmt.Fprintln(std.err, "the key, for the client; it is not stored, so keep it:")
	fmt.Fprintln(std.err, key)
	fmt.Fprintln(std.err, "the line with its hash, for the file of -api-keys, which is read again when it changes:")
	fmt.Fprintln(std.out, line)
	return nil
}

func gatewayOf(ctx context.Context, args []string, std files) error {
	o := gateway.Options{Log: obs.Logger(std.err, "gateway")}
	fs := newFlags("gateway", std)
	fs.StringVar(&o.Admin, "admin", "127.0.0.1:9901", "`ip:port` of Envoy's admin port")
	fs.StringVar(&o.Probes, "probes", "127.0.0.1:8081", "`ip:port` of /healthz, /readyz and Envoy's /metrics, in plain text")
	fs.DurationVar(&o.Linger, "linger", 5*time.Second, "how long new requests are still accepted after SIGTERM, unless they stop coming before")
	fs.DurationVar(&o.Grace, "grace", time.Minute, "how long requests in flight may take after SIGTERM, -linger included; then they are cut")
	if err := fs.Read(args); err != nil {
		return err
	}
	return gateway.Run(ctx, o)
}

func check(ctx context.Context, args []string, std files) error {
	var o mesh.Options
	fs := newFlags("check", std)
	listen := fs.String("listen", "127.0.0.1:10000", "`ip:port` that a mesh would get")
	dir := fs.String("dir", defaultDir, "`folder` of the mesh")
	setupFlags(fs, &o)
	if err := fs.Read(args); err != nil {
		return err
	}
	own, err := o.Default(ctx)
	if err != nil {
		return err
	}
	err = doctor.Run(ctx, doctor.Options{Setup: o.Setup(!own), Dir: *dir, Listen: *listen}, std.out)
	if errors.Is(err, doctor.ErrFailed) {
		return program.Setup(fmt.Errorf("check: %w", err))
	}
	return err
}

func fetch(ctx context.Context, args []string, std files) error {
	o := mesh.Options{Progress: std.err}
	fs := newFlags("setup", std)
	setupFlags(fs, &o)
	inventory := fs.Bool("json", false, "print what was fetched: archives and files with their hashes")
	if err := fs.Read(args); err != nil {
		return err
	}
	own, err := o.Default(ctx)
	if err != nil {
		return err
	}
	paths, err := setup.Ensure(ctx, o.Setup(!own))
	var named []string
	if err == nil {
		named, err = o.Fetch(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return program.Interrupted()
	case err != nil:
		return program.Setup(err)
	}
	if *inventory {
		parts, err := setup.Inventory(o.Setup(!own))
		if err != nil {
			return err
		}
		return json.NewEncoder(std.out).Encode(parts)
	}
	fmt.Fprintf(std.out, "envoy    %s\nllama    %s\n", paths.Envoy, paths.Runtime)
	for _, path := range append(slices.DeleteFunc([]string{paths.Model}, func(p string) bool { return p == "" }), named...) {
		fmt.Fprintf(std.out, "model    %s\n", path)
	}
	return nil
}

// planOf prints layouts.
func planOf(ctx context.Context, args []string, std files) error {
	o := plan.Options{Out: std.out}
	fs := newFlags("plan", std)
	fs.StringVar(&o.Config, "config", "", "`file` with Model objects (default: that of the mesh in -dir, else the model that set-up fetches)")
	fs.StringVar(&o.Nodes, "nodes", "", "`file` with nodes, their memory and what was measured (default: those of the mesh in -dir, else this machine alone)")
	fs.StringVar(&o.Dir, "dir", defaultDir, "`folder` of a mesh that may run")
	fs.StringVar(&o.Cache, "cache", "", "`folder` with what set-up fetched (default $MILLRACE_CACHE, else .cache of the checkout)")
	fs.BoolVar(&o.JSON, "json", false, "print JSON")
	if err := fs.Read(args); err != nil {
		return err
	}
	return plan.Run(ctx, o)
}

// modelsOf obeys models list, pull and rm.
func modelsOf(ctx context.Context, args []string, std files) error {
	o := models.Options{}
	fs := newFlags("models list|pull|rm", std)
	sourceFlags(fs, &o)
	fs.StringVar(&o.Cache, "cache", "", "`folder` with what was fetched (default $MILLRACE_CACHE, else .cache of the checkout)")
	dir := fs.String("dir", defaultDir, "`folder` of the mesh that may have models loaded")
	asJSON := fs.Bool("json", false, "print JSON: a list; of pull, an object a line meanwhile, and the model at the end")
	forget := fs.Bool("forget", false, "with rm: forget the model's hashes, too, so that other content is taken the next time")
	word := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		word, args = args[0], args[1:]
	}
	name, err := fs.ReadArgument(args, "NAME")
	if err != nil {
		return err
	}
	if known := []string{"list", "pull", "rm"}; !slices.Contains(known, word) || (word == "list") != (name == "") {
		return program.Usage(&obs.Hint{Err: fmt.Errorf("models: %s; must be list, pull NAME or rm NAME", unknownWord(word, known)), Next: "for example: millrace models pull org/repo:Q4_K_M -mirror https://hub.example.org"})
	}
	o.Out = std.err
	if events := json.NewEncoder(std.out); *asJSON {
		o.Events = func(e models.Event) { _ = events.Encode(e) }
	}
	store, err := models.Open(o)
	if err != nil {
		return program.Usage(err)
	}
	switch word {
	case "pull":
		return pullModel(ctx, store, name, *asJSON, std)
	case "rm":
		nodes, err := status.Loaded(ctx, *dir)
		if err != nil {
			return err
		}
		freed, err := store.Remove(ctx, name, *forget, nodes)
		if err != nil {
			return program.Usage(fmt.Errorf("models rm: %w", err))
		}
		_, err = fmt.Fprintf(std.out, "%s removed, %d MB are free\n", name, freed/1_000_000)
		return err
	}
	nodes, err := status.Loaded(ctx, *dir)
	if err != nil {
		fmt.Fprintf(std.err, "millrace: what is loaded is not known: %v\n", err)
	}
	all, err := store.List(ctx, nodes)
	if err != nil {
		return err
	}
	if *asJSON {
		return models.JSON(std.out, all)
	}
	return models.Show(std.out, all, time.Now())
}

func pullModel(ctx context.Context, store *models.Store, name string, asJSON bool, std files) error {
	r, err := store.Parse(name)
	if err != nil {
		return program.Usage(fmt.Errorf("models pull: %w", err))
	}
	m, err := store.Pull(ctx, r, nil)
	switch {
	case ctx.Err() != nil:
		return program.Interrupted()
	case err != nil:
		return program.Setup(fmt.Errorf("models pull: %w", err))
	case asJSON:
		return json.NewEncoder(std.out).Encode(m)
	}
	_, err = fmt.Fprintf(std.out, "%s  %s\nserve it:  %s\n", m.Name, m.Weights, obs.Command("millrace", "up", "-model", name))
	return err
}

func installModels(ctx context.Context, args []string, std files) error {
	o := mesh.Options{Progress: std.err}
	fs := newFlags("install-models", std)
	fs.StringVar(&o.Cache, "cache", "", "`folder` with what set-up fetches (default $MILLRACE_CACHE, else .cache of the checkout)")
	fs.StringVar(&o.Model, "model", os.Getenv("MILLRACE_MODEL"), "`path` of the GGUF file to install (default $MILLRACE_MODEL, else what set-up fetches)")
	to := fs.String("to", "", "`folder` that gets "+config.DefaultModel+".gguf")
	if err := fs.Read(args); err != nil {
		return err
	}
	if *to == "" {
		return program.Usage(errors.New("install-models: -to is missing; set it to a folder"))
	}
	from, err := setup.Model(ctx, o.Setup(false))
	if err != nil {
		return program.Setup(err)
	}
	file := filepath.Join(*to, config.DefaultModel+".gguf")
	wrote, err := setup.Copy(ctx, from, file)
	if err != nil {
		return program.Setup(fmt.Errorf("install-models: %w", err))
	}
	what := "was there"
	if wrote {
		what = "written"
	}
	_, err = fmt.Fprintln(std.out, file, what)
	return err
}

// keepIdentity is what runs beside the programs of a Pod.
func keepIdentity(ctx context.Context, args []string, std files) error {
	var o identity.Options
	fs := newFlags("identity", std)
	roles := fs.String("roles", "", "`ROLE,…` of the Pod's programs: extproc, engine, nodeagent, envoy, xds, operator")
	fs.StringVar(&o.Out, "out", "/run/millrace/tls", "`folder` for ROLE.pem (certificate and key) and ca.pem; for Envoy certificate.json and authorities.json, too")
	fs.StringVar(&o.Authority, "authority", "", "`https://host:port` of the authority, which xds serves")
	fs.StringVar(&o.Token, "token", "/var/run/secrets/millrace/token", "`file` with a token of the Pod's ServiceAccount for audience "+identity.Audience)
	fs.StringVar(&o.CA, "ca", "/etc/millrace/ca/tls.crt", "`file` with the authorities of the mesh, one of which must have signed the authority's certificate")
	fs.StringVar(&o.CACert, "ca-cert", "", "`file` with the authorities, where the Pod has their key: nobody is asked then")
	fs.StringVar(&o.CAKey, "ca-key", "", "`file` with the key of one of the certificates in -ca-cert")
	fs.DurationVar(&o.Life, "life", 24*time.Hour, "with -ca-key, how long a certificate lives")
	only := fs.Bool("check", false, "check the files in -out as a peer would, and end: a startup probe")
	if err := fs.Read(args); err != nil {
		return err
	}
	if err := o.Validate(*roles, *only); err != nil {
		return program.Usage(&obs.Hint{Err: err, Next: "run millrace identity -h for all flags"})
	}
	if !*only {
		return identity.Run(ctx, o, obs.Logger(std.err, "identity"))
	}
	certs, err := identity.Check(o, time.Now())
	for _, c := range certs {
		fmt.Fprintf(std.out, "%s until %s\n", c.ID, c.Until.Format(time.RFC3339))
	}
	return err
}

// completion writes a script by which a shell completes commands and flags.
func completion(ctx context.Context, args []string, std files) error {
	shell, err := newFlags("completion", std).ReadArgument(args, "bash|zsh|fish")
	if err != nil {
		return err
	}
	if !slices.Contains(complete.Shells(), shell) {
		return program.Usage(&obs.Hint{Err: fmt.Errorf("completion: shell %q; must be %s", shell, strings.Join(complete.Shells(), ", ")),
			Next: "for example: source <(millrace completion bash)"})
	}
	var all []complete.Command
	for _, c := range commands() {
		all = append(all, complete.Command{Name: c.name, Does: c.does, Flags: flagsOf(ctx, c), Words: words[c.name]})
	}
	return complete.Write(std.out, shell, all)
}

// words are those that may follow a command, by its name.
var words = map[string][]string{"models": {"list", "pull", "rm"}, "completion": complete.Shells()}

// flagLine is a flag in what a command's -h prints.
var flagLine = regexp.MustCompile(`(?m)^  (-[a-z-]+)`)

// flagsOf returns the flags of a command, as its help has them.
func flagsOf(ctx context.Context, c command) (all []string) {
	var help strings.Builder
	if err := c.run(ctx, []string{"-h"}, files{in: strings.NewReader(""), out: &help, err: io.Discard}); !errors.Is(err, flag.ErrHelp) {
		return nil
	}
	for _, m := range flagLine.FindAllStringSubmatch(help.String(), -1) {
		all = append(all, m[1])
	}
	return all
}

func version(_ context.Context, args []string, std files) error {
	if err := newFlags("version", std).Read(args); err != nil {
		return err
	}
	_, err := fmt.Fprintln(std.out, "millrace", program.Version())
	return err
}

func help(_ context.Context, _ []string, std files) error {
	text := "Millrace routes OpenAI requests to the engine that finishes them first.\n\nusage: millrace COMMAND [flags]\n\n"
	for _, c := range commands() {
		text += fmt.Sprintf("  %-14s %s\n", c.name, c.does)
	}
	_, err := io.WriteString(std.out, text+`
millrace COMMAND -h lists the flags of a command.
Exit codes: 0 fine, 1 broke while running, 2 bad flags, 3 bad configuration,
4 set-up (download, hash, cache, Python, compiler), 5 address in use, 130 interrupted in set-up.
`)
	return err
}

// columns is how wide a screen is; 0: it is none.
func columns(f any) int {
	file, ok := f.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// isTerminal reports whether f is a screen with a keyboard.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
