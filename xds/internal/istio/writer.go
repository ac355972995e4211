package istio

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/internal/fleet"
)

// Leader says who of several xds writes.
type Leader interface {
	// Leads reports whether it is this process, surely.
	Leads() bool
}

const (
	// workers is how many writes are under way at a time.
	workers = 8
	// batch is how many are handed out at a time: what is more urgent by then comes first.
	batch = 32
	// editedFor is how long an edit that was undone is shown.
	editedFor = 10 * time.Minute
	// schemasEvery is how often it is checked what the cluster's Istio knows.
	schemasEvery = 30 * time.Second
)

// Writer keeps the objects in the cluster as they are to be.
type Writer struct {
	// Constant after New.
	site    Site
	cluster *cluster
	leader  Leader
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // has one when there is something to do besides a new snapshot

	// Of Run's loop alone.
	state   *desired.State
	static  []*Object
	static0 []obs.Condition // what Static found
	entries map[Key]*Object // the WorkloadEntries, kept while they don't change
	schemas Schemas
	version string
	checked time.Time // when schemas were last fetched
	routed  time.Time // when a route was last written

	// mu guards the fields below.
	mu         sync.Mutex
	found      map[Key]*Found
	done       map[Key]*memory
	edits      []edit
	conditions []obs.Condition
}

// edit is a change by somebody else that was undone.
type edit struct {
	at  time.Time
	key Key
	by  string
}

// New returns a writer.
func New(site Site, c Client, leader Leader, log *slog.Logger, reg prometheus.Registerer) *Writer {
	w := &Writer{
		site: site, leader: leader, log: log, metrics: newMetrics(reg), wake: make(chan struct{}, 1), routed: time.Now(),
		found: make(map[Key]*Found), done: make(map[Key]*memory), entries: make(map[Key]*Object),
	}
	w.cluster = newCluster(site, c, w.observed)
	return w
}

// Conditions returns what is wrong.
func (w *Writer) Conditions() []obs.Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.conditions)
}

// Run follows the snapshots until ctx ends.
func (w *Writer) Run(ctx context.Context, latest func() (*fleet.Snapshot, <-chan struct{})) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan action, batch)
	for range workers {
		g.Go(func() error {
			for a := range queue {
				w.write(ctx, a)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(queue)
		defer w.cluster.stop()
		for {
			snap, next := latest()
			if w.leader.Leads() && snap.Settled && snap.Desired != nil {
				w.step(ctx, snap, queue, time.Now())
			}
			select {
			case <-ctx.Done():
				return nil
			case <-next:
			case <-w.wake:
			}
		}
	})
	return g.Wait()
}

// step hands out the writes that are due.
func (w *Writer) step(ctx context.Context, snap *fleet.Snapshot, queue chan<- action, now time.Time) {
	if now.Sub(w.checked) >= schemasEvery {
		w.checked = now
		var err error
		if w.schemas, w.version, err = fetchSchemas(w.cluster.client.Schemas, w.schemas, w.version); err != nil {
			w.log.Warn("schemas of Istio", "error", err)
		}
	}
	if w.schemas == nil || !w.cluster.watch(ctx, w.schemas) {
		return // what is there is not known yet
	}
	want, problems := w.want(snap)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range plan(now, want, w.found, w.done, w.routed) {
		select {
		case queue <- a:
		default:
			w.shown(now, problems)
			return // a worker that is done wakes us
		}
		m := w.done[a.key]
		if m == nil {
			m = &memory{}
			w.done[a.key] = m
		}
		m.busy, m.written = true, now
		if a.kind.stage == routeStage {
			w.routed = now
		}
	}
	w.forget(now, want)
	w.shown(now, problems)
}

// forget drops what is known of objects that are neither there nor to be.
func (w *Writer) forget(now time.Time, want map[Key]*Object) {
	for k, m := range w.done {
		if want[k] == nil && w.found[k] == nil && !m.busy && now.Sub(m.written) > retryLatest {
			delete(w.done, k)
		}
	}
}

// want returns what is to be, as the cluster's Istio can take it, and what it can't.
func (w *Writer) want(snap *fleet.Snapshot) (map[Key]*Object, []obs.Condition) {
	d := snap.Desired
	if d != w.state {
		w.state = d
		w.static, w.static0 = Static(w.site, d)
		clear(w.entries)
	}
	all := make(map[Key]*Object, len(w.static)+len(snap.Endpoints))
	unknown := make(map[string][]string) // kinds, by what is not known of them
	add := func(o *Object) {
		fit, paths := w.schemas.Fit(o)
		for _, p := range paths {
			at := o.Kind.Name + ": " + p
			unknown[at] = append(unknown[at], o.Name)
		}
		if fit != nil {
			all[fit.Key()] = fit
		}
	}
	for _, o := range w.static {
		add(o)
	}
	entries := make(map[Key]*Object, len(snap.Endpoints))
	for _, e := range Entries(w.site, d, snap) {
		k := Key{WorkloadEntry.Name, w.site.Namespace, e.Name}
		level := Level(w.weightOf(k), e.Exact)
		o := w.entries[k]
		if o == nil || o.Spec["weight"] != int64(level) {
			var ok bool
			if o, ok = Workload(w.site, d, e, level); !ok {
				continue
			}
		}
		entries[k] = o
		add(o)
	}
	w.entries = entries
	return all, append(slices.Clone(w.static0), unsupported(unknown)...)
}

func (w *Writer) weightOf(k Key) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.found[k]; f != nil {
		return f.weight
	}
	return 0
}

// unsupported says what the cluster's Istio does not know.
func unsupported(unknown map[string][]string) (all []obs.Condition) {
	for _, what := range slices.Sorted(maps.Keys(unknown)) {
		kind, path, _ := strings.Cut(what, ": ")
		c := obs.Condition{Code: Unsupported, Next: "upgrade Istio, or leave what needs it out of the policy's spec.istio"}
		switch {
		case path == "kind":
			c.Text = fmt.Sprintf("the cluster has no %s; %s not written", kind, some(unknown[what]))
			c.Next = "install what defines it (Istio, Gateway API, inference extension), or leave what needs it out of the policy's spec.istio"
		case slices.Contains(optional, path):
			c.Text = fmt.Sprintf("the cluster's %s has no %s; written without it", kind, path)
		default:
			c.Text = fmt.Sprintf("the cluster's %s has no %s; %s not written", kind, path, some(unknown[what]))
		}
		all = append(all, c)
	}
	return all
}

// some returns the first of several names.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// shown sets what is wrong. mu is held.
func (w *Writer) shown(now time.Time, problems []obs.Condition) {
	all := problems
	failed := make(map[string][]string) // objects, by reason
	for k, m := range w.done {
		if m.failures > 0 {
			failed[m.reason] = append(failed[m.reason], k.String())
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(failed)) {
		slices.Sort(failed[reason])
		all = append(all, obs.Condition{
			Code: NotWritten, Text: fmt.Sprintf("%s: %s", some(failed[reason]), reason),
			Next: "give xds the rights that manifests/istio.md lists, or remove the object of another owner that has the name",
		})
	}
	w.edits = slices.DeleteFunc(w.edits, func(e edit) bool { return now.Sub(e.at) > editedFor })
	if n := len(w.edits); n > 0 {
		last := w.edits[n-1]
		all = append(all, obs.Condition{
			Code: Edited, Text: fmt.Sprintf("%s was changed by %s and restored, %d edits in the last %s", last.key, last.by, n, editedFor),
			Next: "change the Policy, Model or Endpoints instead: these objects are made of them",
		})
	}
	w.conditions = all
	counts := make(map[string]int)
	for k := range w.found {
		counts[k.Kind]++
	}
	for _, k := range Kinds() {
		w.metrics.objects.WithLabelValues(k.Name).Set(float64(counts[k.Name]))
	}
}

// observed takes in an object as it is in the cluster; nil: it is gone.
func (w *Writer) observed(k Key, f *Found) {
	w.mu.Lock()
	if f == nil {
		delete(w.found, k)
	} else {
		w.found[k] = f
	}
	w.mu.Unlock()
	w.awake()
}

func (w *Writer) awake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// write does one write, and remembers what came of it.
func (w *Writer) write(ctx context.Context, a action) {
	if !w.leader.Leads() {
		w.mu.Lock()
		w.done[a.key].busy = false
		w.mu.Unlock()
		return
	}
	f, n, err := w.cluster.write(ctx, a)
	w.mu.Lock()
	m := w.done[a.key]
	m.busy, m.written = false, time.Now()
	if err != nil {
		m.failures, m.reason = m.failures+1, reasonOf(err)
		if ctx.Err() == nil {
			w.metrics.errors.WithLabelValues(a.kind.Name).Inc()
			w.log.Warn("Istio object not written", "object", a.key.String(), "verb", a.verb.String(), "error", err)
		}
	} else {
		m.failures, m.reason, m.wrote = 0, "", ""
		if a.verb == remove {
			delete(w.found, a.key)
		} else {
			m.wrote, w.found[a.key] = a.object.hash, f
		}
		w.metrics.writes.WithLabelValues(a.kind.Name, a.verb.String()).Inc()
		w.metrics.bytes.Add(float64(n))
	}
	if a.by != "" && err == nil {
		w.edits = append(w.edits, edit{m.written, a.key, a.by})
		w.metrics.edits.WithLabelValues(a.kind.Name).Inc()
		w.log.Warn("Istio object restored", "object", a.key.String(), "changed by", a.by)
	}
	w.mu.Unlock()
	w.awake()
}
