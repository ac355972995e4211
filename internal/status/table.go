package status

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/state"
)

// write shows a report to a person.
func write(w io.Writer, r Report, now time.Time, width int) error {
	var b strings.Builder
	wrap(&b, header(r), "", width)
	if !r.Running {
		_, err := io.WriteString(w, b.String())
		return err // the rest is history
	}
	if len(r.Nodes) > 0 {
		fmt.Fprintln(&b)
		append(fleet(r.Nodes, now), sleeping(r.Unplaced)...).write(&b, width)
	}
	if len(r.Endpoints) > 0 {
		fmt.Fprintln(&b)
		endpoints(r.Endpoints, now).write(&b, width)
	}
	if planned := layouts(r.Objects); len(planned) > 1 {
		fmt.Fprintln(&b)
		planned.write(&b, width)
	}
	if scaled := scalings(r.Objects); len(scaled) > 1 {
		fmt.Fprintln(&b)
		scaled.write(&b, width)
	}
	if ill := slices.DeleteFunc(slices.Clone(r.Objects), Object.well); len(ill) > 0 {
		fmt.Fprintln(&b)
		configuration(ill, now).write(&b, width)
	}
	if ill := unhealthy(r.Processes, now); len(ill) > 0 {
		fmt.Fprintln(&b)
		processes(ill, now).write(&b, width)
	}
	for i, c := range r.Conditions {
		if i == 0 {
			fmt.Fprintln(&b)
		}
		wrap(&b, "! "+c.Code+": "+c.Text, "  ", width)
		if c.Next != "" {
			wrap(&b, "  → "+c.Next, "    ", width)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// header says in one line how the mesh is, and how old that is.
func header(r Report) string {
	if !r.Running {
		return fmt.Sprintf("%s: not running", r.Dir)
	}
	up, replicas := readyReplicas(r.Nodes)
	word := "not ready"
	switch {
	case r.Ready && up == replicas && len(r.Conditions) == 0:
		word = "ready"
	case r.Ready:
		word = "degraded"
	}
	source := "from xds"
	if r.Source != fromXDS {
		source = "as the engines report it: xds does not answer"
	}
	return fmt.Sprintf("http://%s  %s: %d of %d replicas ready  (%s, %s old)",
		r.Listen, word, up, replicas, source, age(time.Duration(r.AgeMillis)*time.Millisecond))
}

// readyReplicas counts replicas: one is ready if its first stage is.
func readyReplicas(nodes []Node) (up, all int) {
	names := map[string]bool{}
	for _, n := range nodes {
		if n.Replica == "" {
			continue
		}
		names[n.Replica] = names[n.Replica] || (n.Stage == 1 && n.State == ready)
	}
	for _, ok := range names {
		if ok {
			up++
		}
	}
	return up, len(names)
}

func fleet(nodes []Node, now time.Time) table {
	t := table{{"NODE", "MODEL", "REPLICA", "STATE", "FOR", "WEIGHT", "RUN/WAIT", "TOK/S", "IN CACHE", "DEVICE", "MEMORY", "REASON"}}
	for _, n := range nodes {
		t = append(t, []string{
			n.Node, dash(n.Model), part(n), n.State, since(n.Since, now), weight(n.Weight),
			fmt.Sprintf("%d/%d", n.Running, n.Waiting), figure(n.Decode), count(n.InCache), dash(n.Device),
			memory(n.MemoryUsed, n.MemoryTotal), n.Reason,
		})
	}
	return t
}

// sleeping are the rows of replicas that are asleep without a place.
func sleeping(all []Unplaced) (rows table) {
	for _, u := range all {
		if u.Asleep {
			rows = append(rows, []string{"-", u.Model, u.Replica, "ASLEEP", "", "", "", "", "", "", "", u.Reason})
		}
	}
	return rows
}

func part(n Node) string {
	if n.Stages == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %d/%d", n.Replica, n.Stage, n.Stages)
}

func dash(s string) string { return cmp.Or(s, "-") }

func weight(w *uint32) string {
	if w == nil {
		return "?"
	}
	return strconv.FormatUint(uint64(*w), 10)
}

func figure(v float64) string {
	if v <= 0 {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// count shows how many there are; none may be because nobody has said it.
func count(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

// memory shows "212 MiB / 23.5 GiB".
func memory(used, total uint64) string {
	if total == 0 {
		return size(used)
	}
	return size(used) + " / " + size(total)
}

func size(n uint64) string {
	const gib = 1 << 30
	if n >= gib {
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return age(now.Sub(t))
}

// age shows a length of time with one unit.
func age(d time.Duration) string {
	switch d = max(0, d); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0fm", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0fh", d.Hours())
	default:
		return fmt.Sprintf("%.0fd", d.Hours()/24)
	}
}

// recent is how long a restart is news.
const recent = 10 * time.Minute

// unhealthy returns the processes worth a glance at night: those that don't run,
// and those that were restarted lately.
func unhealthy(ps []state.Process, now time.Time) []state.Process {
	return slices.DeleteFunc(slices.Clone(ps), func(p state.Process) bool {
		return p.Status == state.Running && (p.Restarts == 0 || now.Sub(p.Since) > recent)
	})
}

func processes(ps []state.Process, now time.Time) table {
	t := table{{"PROCESS", "STATE", "FOR", "PID", "RESTARTS", "REASON"}}
	for _, p := range ps {
		pid := "-"
		if p.PID != 0 {
			pid = strconv.Itoa(p.PID)
		}
		t = append(t, []string{p.Name, p.Status, since(p.Since, now), pid, strconv.Itoa(int(p.Restarts)), why(p)})
	}
	return t
}

func why(p state.Process) string {
	if p.Reason == "" && p.LastExit != "" {
		return "restarted after it ended: " + p.LastExit
	}
	return p.Reason
}
