// Package noxds tests extproc without xds: envoy/standalone.yaml with a real Envoy,
// `extproc -fleet`, and engines that nobody of ours started: three of llama.cpp's own
// servers, or with the build tag vllm two real vLLM.
//
// Its one rule: what is asserted is what a client, Envoy or an engine says; engines
// report nothing but what they publish to everybody.
package noxds

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// fleet is engines, extproc and Envoy.
type fleet struct {
	t       *testing.T // of the whole fleet
	dir     string
	ports   ports
	engines []*rig.Process
	extproc *rig.Process
	envoy   *rig.Process
	more    int // engines beyond those of fleet.yaml
}

// ports are those that standalone.yaml names, by what stands there.
type ports struct {
	engines                         [3]int
	gateway, admin, extproc, metric int
}

// newFleet starts everything, with llama.cpp's servers, and waits until it serves.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	return newFleetOf(t, (*fleet).startEngine, func(file string) string { return file })
}

// newFleetOf starts everything with other engines, and with an edited fleet file.
func newFleetOf(t *testing.T, startEngine func(f *fleet, i int), edit func(file string) string) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), engines: make([]*rig.Process, 3)}
	free := rig.MustPorts(t, 7)
	copy(f.ports.engines[:], free)
	f.ports.gateway, f.ports.admin, f.ports.extproc, f.ports.metric = free[3], free[4], free[5], free[6]
	for i := range f.engines {
		startEngine(f, i)
	}
	f.write(t, "fleet.yaml", edit(f.adapt(t, "fleet.yaml")))
	f.startExtproc()
	f.write(t, "envoy.yaml", f.adapt(t, "standalone.yaml"))
	f.envoy = rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	for i := range f.engines {
		f.await(t, "an engine serves", func() error { return rig.Healthy(rig.Address(f.ports.engines[i])) })
	}
	f.await(t, "Envoy has all", func() error { return f.hosts(len(f.engines) + f.more) })
	f.await(t, "extproc has no condition", f.ready)
	return f
}

// noHedges keeps a machine that is busy with other tests from making tries that others count.
const noHedges = "retries: {hedgeAfter: 1m}"

// adapt returns a file of envoy/ with our ports in place of its own.
func (f *fleet) adapt(t *testing.T, name string) string {
	t.Helper()
	text := rig.Read(t, filepath.Join(rig.Root(), "envoy", name))
	for old, port := range map[string]int{
		"8001": f.ports.engines[0], "8002": f.ports.engines[1], "8003": f.ports.engines[2],
		"8080": f.ports.gateway, "9901": f.ports.admin, "7200": f.ports.extproc,
	} {
		for _, before := range []string{"port_value: ", "127.0.0.1:"} {
			text = strings.ReplaceAll(text, before+old, before+strconv.Itoa(port))
		}
	}
	text = strings.Replace(text, "\npolicy:\n", "\npolicy:\n  "+noHedges+"\n", 1)
	return strings.Replace(text, "/dev/stdout", filepath.Join(f.dir, "access.log"), 1)
}

func (f *fleet) write(t *testing.T, name, text string) {
	t.Helper()
	rig.Write(t, filepath.Join(f.dir, name), text)
}

// startEngine starts one of the servers again, at its address.
func (f *fleet) startEngine(i int) {
	f.engines[i] = rig.StartLlamaServer(f.t, rig.Address(f.ports.engines[i])).Process
}

func (f *fleet) startExtproc() {
	f.extproc = rig.StartProgram(f.t, "extproc", "-fleet", filepath.Join(f.dir, "fleet.yaml"),
		"-listen", rig.Address(f.ports.extproc), "-metrics", f.admin())
}

// admin is the address of extproc's metrics and conditions.
func (f *fleet) admin() string { return rig.Address(f.ports.metric) }

// url is a path behind Envoy.
func (f *fleet) url(path string) string { return "http://" + rig.Address(f.ports.gateway) + path }

// await waits until cond returns nil.
func (f *fleet) await(t *testing.T, what string, cond func() error) {
	t.Helper()
	rig.Wait(t, time.Minute, what, cond)
}

// ready says which conditions extproc has.
func (f *fleet) ready() error { return rig.Ready(f.admin()) }

// served returns how many requests each engine got, by Envoy's count.
func (f *fleet) served(t *testing.T) (n [3]int) {
	t.Helper()
	hosts, err := rig.EnvoyHosts(rig.Address(f.ports.admin), "")
	if err != nil {
		t.Fatal(err)
	}
	for i, port := range f.ports.engines {
		n[i] = hosts[rig.Address(port)].Requests
	}
	return n
}

// hosts says why Envoy has not so many healthy engines and an extproc.
func (f *fleet) hosts(want int) error {
	hosts, err := rig.EnvoyHosts(rig.Address(f.ports.admin), "")
	if err != nil {
		return err
	}
	healthy := 0
	for _, h := range hosts {
		if h.Healthy {
			healthy++
		}
	}
	if healthy != want+1 {
		err = fmt.Errorf("%d healthy hosts, want %d engines and extproc", healthy, want)
	}
	return err
}

// ask sends a conversation; header holds pairs of name and value.
func (f *fleet) ask(messages []rig.Message, tokens int, header ...string) (rig.Completion, http.Header, error) {
	c, a, err := rig.Complete(context.Background(), f.url(rig.ChatPath), rig.Chat{Model: rig.Model, Messages: messages, MaxTokens: tokens}, header...)
	return c, a.Header, err
}
