// Command replay runs real traces, and workloads made from seeds, through extproc's policy and
// others against simulated engines, and prints what became of caches, first tokens and load.
package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"millrace.dev/millrace/extproc/internal/replay"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/trust"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		obs.PrintError(os.Stderr, "replay", err)
		os.Exit(1)
	}
}

// traces are the files that are looked for, with the size of their blocks.
var traces = []struct {
	file   string
	block  int
	copies int // of conversations: those of agents are too few to fill a fleet
}{
	{"mooncake_conversation.jsonl.gz", 512, 1},
	{"mooncake_synthetic.jsonl.gz", 512, 1},
	{"agent_miniswe_blk16.jsonl.gz", 16, 20},
	{"agent_taubench_blk16.jsonl.gz", 16, 20},
}

// options is what the flags say.
type options struct {
	dir, trace, policy, fleets, loads string
	engines, seeds                    int
	pickers                           replay.Pickers
	json                              bool
	workloads                         workloads
}

func run(args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("replay", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.dir, "traces", "", "`folder` with the traces: NAME.jsonl.gz, of which each line has timestamp (ms), input_length, output_length, hash_ids and perhaps session_id")
	fs.StringVar(&o.trace, "trace", "", "only traces whose `name` contains this")
	fs.StringVar(&o.policy, "policy", "", "only policies whose `name` contains this")
	fs.StringVar(&o.fleets, "fleet", "gpu,mixed,cpu", "fleets of engines: gpu, mixed, cpu")
	fs.StringVar(&o.loads, "load", "0.2,0.5,0.8,0.95", "loads, as shares of capacity")
	fs.IntVar(&o.engines, "engines", 8, "engines in a fleet")
	fs.IntVar(&o.pickers.N, "pickers", 1, "extprocs that take turns")
	fs.BoolVar(&o.pickers.Peers, "peers", false, "extprocs let each other know what they have sent, as those of a pool do")
	fs.BoolVar(&o.pickers.Guess, "guess", false, "engines report nothing of their caches, as those of a pool without KV events")
	fs.IntVar(&o.seeds, "seeds", 3, "runs of each, of which the median is shown")
	fs.StringVar(&o.workloads.folder, "workloads", "", "run generated workloads, not traces: `folder` for results.jsonl and a picture for each family")
	fs.StringVar(&o.workloads.family, "family", "", "of the workloads only these `families`; empty: all")
	fs.StringVar(&o.workloads.half, "half", "held-out", "of the workloads the `half`: training (by which constants may be chosen), held-out or both")
	fs.IntVar(&o.workloads.each, "each", 4, "workloads of each family and half")
	fs.StringVar(&o.workloads.loads, "loads", "0.5,0.8,0.95,1.2", "loads of workloads, as shares of capacity")
	fs.BoolVar(&o.json, "json", false, "print JSON lines instead of tables")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.workloads.folder != "" {
		return o.workloads.run(context.Background(), o.policy, stdout, stderr)
	}
	if o.dir == "" {
		return &obs.Hint{Err: errors.New("no traces"), Next: "set -traces to the folder that holds them, or -workloads to one for results of generated workloads"}
	}
	return o.all(stdout)
}

// all runs everything that was asked for.
func (o *options) all(w io.Writer) error {
	found := false
	for _, f := range traces {
		if !strings.Contains(f.file, o.trace) {
			continue
		}
		t, err := read(filepath.Join(o.dir, f.file), f.block)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		found = true
		if err := o.one(w, t.Copies(f.copies)); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("-traces %s: none of the known traces with %q in its name", o.dir, o.trace)
	}
	return nil
}

// one runs one trace.
func (o *options) one(w io.Writer, t *replay.Trace) error {
	fleets := replay.Fleets(o.engines)
	for _, name := range strings.Split(o.fleets, ",") {
		fleet, ok := fleets[name]
		if !ok {
			return fmt.Errorf("-fleet: %q; must be of gpu, mixed, cpu", name)
		}
		for _, l := range strings.Split(o.loads, ",") {
			load, err := trust.Number(l, 1e-3, 1e3)
			if err != nil {
				return fmt.Errorf("-load: %w", err)
			}
			if err := o.print(w, o.rows(t, fleet, load)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *options) rows(t *replay.Trace, f replay.Fleet, load float64) (rows []replay.Row) {
	for _, p := range replay.Policies {
		if strings.Contains(p, o.policy) {
			rows = append(rows, replay.Measure(t, f, p, load, o.pickers, o.seeds))
		}
	}
	return rows
}

func (o *options) print(w io.Writer, rows []replay.Row) error {
	if !o.json {
		replay.Print(w, rows)
		return nil
	}
	enc := json.NewEncoder(w)
	for r := range slices.Values(rows) {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func read(path string, block int) (*replay.Trace, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return replay.Read(name, block, z)
}
