package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row explains a row of the output: to whoever asks for help, in the JSON lines and
// in the table.
type row struct {
	name string
	// what is measured, how, and what the floor is; no floor: there is nothing to
	// compare with.
	what, how, floor string
	// took is about how long it takes with the flags' defaults, in seconds.
	took int
	run  func(context.Context, *bench) error // nil: the row before it measures it, too
}

// What several rows have in common.
const (
	howPicker = "a driver sends what Envoy sends, over gRPC on 2 connections, 8 requests at once, of 256 conversations that grow; a stand-in for xds publishes the endpoints once; CPU time of the extproc process (from /proc) by decision"
	floorEcho = "a picker on the same gRPC library that decodes nothing and always names the same host, driven in turns with extproc"
)

// rows returns all that can be measured, in order.
func rows() []row {
	return []row{
		{"P1", "a decision of extproc for a body of 2 KiB among 8 endpoints, in each way in which Envoy can send the body", howPicker, floorEcho, 75, picker},
		{"P2", "the same among 512 and 4,096 endpoints", howPicker, floorEcho, 60, nil},
		{"P3", "the same for 64 KiB among 64 endpoints: conversations whose beginning is cached, and cold ones", howPicker, floorEcho, 60, nil},
		{"P4", "the same for 400 KiB, about 100,000 tokens", howPicker, floorEcho, 60, nil},
		{"P5", "the same for 2 KiB where Envoy sends 200 chunks of each answer to extproc, too", howPicker, floorEcho, 20, nil},
		{"P6", "objects that extproc allocates for a decision of 2 KiB beyond those of gRPC, and its resident memory afterwards", "Go's own counter in its /metrics, by decision, less what reading it costs; memory from /proc", "a picker that names no host and allocates nothing of its own: gRPC alone", 20, nil},
		{"P7", "extproc behind xds with 1,000 endpoints while nobody asks: CPU, memory, and the memory of each endpoint and conversation", "CPU time and resident memory from /proc, heap after a collection", "", 60, idle},
		{"P7a", "extproc -fleet, which scrapes 1,000 endpoints by itself: idle, and with a request at each", "endpoints on loopback addresses answer with a page of 20 KB like vLLM's; CPU time from /proc by page", "", 100, probing},
		{"K3", "extproc -pool with 1,000 Pods: idle, when one of them changes, and a decision among them", "the Pods are objects of a real API server (e2e/cluster), their engines those of P7a; CPU time and resident memory from /proc. A decision includes that extproc reads the page of each engine that works once a second, up to 1,000 pages a second", floorEcho + "; of the rest none", 120, pool},
		{"P8", "tokens counted of a text that was not seen before, by kind of text", "the Go benchmark of extproc/internal/token on one core, by CPU time", "", 60, tokens},
		{"P9", "a request of 2 KiB through a real Envoy that asks a picker, among 8 engines that answer at once", "8 clients; CPU time of Envoy and of the picker (from /proc) by request", "Envoy with the picker of P1's floor, in turns", 30, gateway},
		{"F2", "xds and one extproc while 1,000 engines report what is in their caches", "1,000 stand-ins for nodeagent on real streams, a report each second; CPU time and resident memory from /proc", "the same without reports of caches", 120, caches},
		{"E1", "tokens per second of a real llama.cpp through engine, with 1, 4 and 8 clients, and engine's own CPU time", "a whole mesh (millrace up); engine's replica is asked past Envoy; each way goes first in every other round", "the same llama.cpp asked directly", 120, engine},
		{"E2", "time to the first token of a conversation whose backend was killed, restored and computed, and what saving costs a busy backend", "a whole mesh; one engine is asked past Envoy, with the keys that extproc would name; its backend is killed before the third turn", "the first turn of as many tokens, computed", 300, outlives},
		{"E3", "answers that keep a goal for first tokens and for each further one, on a load that rises to twice what the backend can do and falls", "a whole mesh with a node and a llama.cpp for each limit, asked past Envoy at the same time with the same requests, so that whatever else the machine does slows all down; the goals are 5 and 3 times what one client got just before, while all work; a request that is refused or late is not good; clients wait for a minute", "the best of the limits 1, 4, 16 and unlimited, without a goal, of each round", 600, goodput},
		{"E6", "the layouts of 100 models on 1,000 uneven nodes, and of 8 models on 10", "internal/planner in this process, a seeded fleet; CPU time (getrusage) of one plan of all", "", 10, layouts},
		{"T1", "what mutual TLS on every link costs: CPU time by request, and tokens per second of a replica whose shards' traffic goes through the tunnel", "two whole meshes of one model split over two nodes, one with -tls, asked through their Envoys in turns", "the mesh without TLS", 90, tlsCost},
		{"U1", "a start of millrace up with a full cache: until ready, and until the first answer", "wall-clock time from the command on", "", 20, start},
		{"L4", "what it is worth that conversations stay where they are cached: time to the first token of turns 2 to 10", "a whole mesh; conversations of ten turns through its Envoy", "another Envoy in front of the same engines, which takes them in turns and asks no picker", 180, turns},
	}
}

// explained returns the row of that name; the zero row if there is none.
func explained(name string) row {
	i := slices.IndexFunc(rows(), func(r row) bool { return r.name == name })
	if i < 0 {
		return row{}
	}
	return rows()[i]
}

// names are all rows' names with commas between them.
func names() string {
	var all []string
	for _, r := range rows() {
		all = append(all, r.name)
	}
	return strings.Join(all, ",")
}

// chosen returns the rows to measure by the value of -rows: names with commas, P for
// P1 to P6.
func chosen(only string) (map[string]bool, error) {
	all := map[string]bool{}
	for name := range strings.SplitSeq(only, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "P":
			for _, p := range []string{"P1", "P2", "P3", "P4", "P5", "P6"} {
				all[p] = true
			}
		case explained(name).name == "":
			return nil, fmt.Errorf("-rows %s: no row %q; there are %s, and P for P1 to P6", only, name, names())
		default:
			all[name] = true
		}
	}
	return all, nil
}

// explain prints the rows for a person: what each measures, how, what the floor is.
func explain(w io.Writer) {
	fmt.Fprint(w, `bench measures Millrace, row by row. It prints a JSON line for each figure:

  row, what    what was measured; how says by which means
  value, unit  the median of the rounds
  floor        what the same work takes without ours; floor_is says what it is
  ratio        the median of the rounds' own value / floor: both were measured in
               turns, so a busy machine moves both
  goal         what the figure is to be; "x × floor" is about the ratio
  env          the machine: CPUs, their name, load averages, Go, rounds

and a table of all at the end. CPU time and ratios mean something on a shared
machine; wall-clock figures (U1, L4, tokens/s) little.

`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows() {
		fmt.Fprintf(tw, "%s\twhat\t%s\n\thow\t%s\n", r.name, r.what, r.how)
		if r.floor != "" {
			fmt.Fprintf(tw, "\tfloor\t%s\n", r.floor)
		}
		fmt.Fprintf(tw, "\ttakes\tabout %d s\n", r.took)
	}
	_ = tw.Flush()
}
