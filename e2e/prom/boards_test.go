package prom

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// dashboards is the folder of what is checked here.
var dashboards = filepath.Join(rig.Root(), "manifests", "dashboards")

// asked is a query of a panel.
type asked struct {
	where string // dashboard, panel
	query string
	// whenWell and noGPU are what the panel's description says of when it has no data.
	whenWell, noGPU bool
}

// readBoards returns the queries of all panels.
func readBoards(t *testing.T) []asked {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dashboards, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no dashboards (%v)", dashboards, err)
	}
	var all []asked
	for _, file := range files {
		var board struct {
			Panels []struct {
				Type, Title, Description string
				Targets                  []struct{ Expr string }
			}
		}
		if err := json.Unmarshal([]byte(rig.Read(t, file)), &board); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				query := strings.NewReplacer("[$__rate_interval]", span, "$model", ".*").Replace(target.Expr)
				all = append(all, asked{
					where: filepath.Base(file) + ", " + p.Title, query: query,
					whenWell: strings.HasSuffix(p.Description, "Empty when all is well."),
					noGPU:    strings.HasSuffix(p.Description, "Empty without GPUs."),
				})
			}
		}
	}
	return all
}

// Spans and patience of rules, which are shorter here, where Prometheus scrapes each second.
var (
	ruleSpans = regexp.MustCompile(`\[(5m|15m|30m|1h|6h)\]`)
	patience  = regexp.MustCompile(`(?m)^( +for:) \d+m$`)
)

// alerts are the rules of manifests/dashboards.
type alerts struct {
	text  string
	names []string
}

func readAlerts(t *testing.T) *alerts {
	t.Helper()
	a := &alerts{text: rig.Read(t, filepath.Join(dashboards, "rules.yaml"))}
	for _, m := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(a.text, -1) {
		a.names = append(a.names, m[1])
	}
	if len(a.names) == 0 {
		t.Fatal("rules.yaml has no alerts")
	}
	return a
}

// quick returns the rules with spans and patience of seconds.
func (a *alerts) quick() string {
	return patience.ReplaceAllString(ruleSpans.ReplaceAllString(a.text, span), "$1 1s")
}

// TestRules has promtool prove what takes longer than a test may, and GPUs.
func TestRules(t *testing.T) {
	cmd := exec.Command(rig.MustCached(t, filepath.Join("prometheus-*", "promtool")), "test", "rules", "rules_test.yaml")
	cmd.Dir = "testdata"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, out)
	}
}

// TestRunbook shows that each alert names a section of the page, and each section is of
// an alert.
func TestRunbook(t *testing.T) {
	page := rig.Read(t, filepath.Join(rig.Root(), "manifests", "alerts.md"))
	a := readAlerts(t)
	for _, name := range a.names {
		if !strings.Contains(page, "\n## "+name+"\n") {
			t.Errorf("manifests/alerts.md has no section %q", name)
		}
		if link := "runbook: manifests/alerts.md#" + strings.ToLower(name) + "\n"; !strings.Contains(a.text, link) {
			t.Errorf("%s: want %q", name, link)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (Millrace\w+)$`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(a.text, "alert: "+m[1]+"\n") {
			t.Errorf("manifests/alerts.md has a section of %s, which is no alert", m[1])
		}
	}
}

// boards checks what panels showed from one time to another, of which all was well until
// the time well.
func (w *watched) boards(t *testing.T, from, well time.Time) {
	to := time.Now()
	for _, q := range readBoards(t) {
		had, err := w.prom.EverHadData(q.query, from, to)
		if err != nil {
			t.Errorf("%s: %v", q.where, err)
			continue
		}
		if !had {
			t.Errorf("%s: no data at any time: %s", q.where, q.query)
		}
		if !q.whenWell && !q.noGPU {
			continue
		}
		if had, err = w.prom.EverHadData(q.query, from, well); err != nil || had {
			t.Errorf("%s: has data while all is well (%v): %s", q.where, err, q.query)
		}
	}
}

// fired shows that each alert fired, of those that promtool does not prove.
func (w *watched) fired(t *testing.T, from, well time.Time) {
	proven := rig.Read(t, filepath.Join("testdata", "rules_test.yaml"))
	to := time.Now()
	for _, name := range readAlerts(t).names {
		firing := fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}`, name)
		had, err := w.prom.EverHadData(firing, from, to)
		switch {
		case err != nil:
			t.Error(err)
		case had:
			if early, err := w.prom.EverHadData(firing, from, well); err != nil || early {
				t.Errorf("%s fired while all was well (%v)", name, err)
			}
			t.Logf("%s fired", name)
		case !strings.Contains(proven, "alertname: "+name+"\n        exp_alerts:"):
			t.Errorf("%s did not fire, and testdata/rules_test.yaml does not have it fire either", name)
		}
	}
}

// gpuNode starts a nodeagent that reads a GPU, and has no engine and no xds. Then its GPU
// is lost.
func (w *watched) gpuNode(t *testing.T) {
	dir := t.TempDir()
	lib, state := rig.FakeNVML(t, dir), filepath.Join(dir, "state")
	const gpu = "driver 580.95\ncount 1\n0.uuid GPU-aaaa\n0.name Fake H200\n"
	rig.Write(t, state, gpu+"0.util 55\n0.memory.total 1073741824\n0.memory.used 536870912\n0.temperature 71\n"+
		"0.power 350000\n0.clock 900\n0.maxclock 1980\n0.reasons 0x40\n0.ecc 2\n")
	t.Setenv("FAKE_NVML_STATE", state)
	addrs := rig.MustAddresses(t, 3)
	p := rig.StartProgram(t, "nodeagent", "-node", "gpu-node", "-nvml", lib, "-metrics", addrs[0], "-engine", addrs[1], "-xds", addrs[2])
	rig.Replace(t, filepath.Join(w.dir, "gpu.json"), fmt.Sprintf(`[{"targets": [%q], "labels": {"instance": "nodeagent@gpu-node"}}]`, addrs[0]))
	// A picture has a point each second: one sample alone may lie between two.
	seen := func(what, query string) {
		rig.Wait(t, rig.BackLimit, what, func() error {
			got, err := w.prom.Query(query)
			if err == nil && len(got) == 0 {
				err = fmt.Errorf("no data; nodeagent: %s", p.Out.Tail())
			}
			return err
		})
	}
	seen("GPU figures are there", "count_over_time(millrace_nodeagent_gpu_power_watts"+span+") >= 3")
	seen("a node without xds is named", `ALERTS{alertname="MillraceWithoutXds", alertstate="firing", instance="nodeagent@gpu-node"}`)
	rig.Replace(t, state, gpu+"0.return 15\n")
	seen("a lost GPU is named", "sum_over_time(millrace_nodeagent_gpu_lost"+span+") >= 3")
}
