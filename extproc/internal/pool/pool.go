// Package pool follows InferencePools in Kubernetes: the pools, the Pods of their
// namespaces, their objectives and rewrites.
//
// extproc runs a Watcher for -pool, and gives what it finds to fleet. Only this package
// of extproc knows Kubernetes' own types, and keeps of them what decides something. Its
// one rule: what was seen last holds until something else is seen, however long the API
// server is away; what is optional and not there (a kind that is not installed, a right
// that is not given) is not an error.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/extproc/internal/fleet"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/obs"
)

// Name names a pool.
type Name struct{ Namespace, Name string }

// String is the form that ParseNames reads.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// ParseNames reads "namespace/name,namespace/name".
func ParseNames(text string) ([]Name, error) {
	var all []Name
	for part := range strings.SplitSeq(text, ",") {
		namespace, name, ok := strings.Cut(strings.TrimSpace(part), "/")
		n := Name{namespace, name}
		switch {
		case !ok || !isName(namespace) || !isName(name):
			return nil, fmt.Errorf("%q; must be namespace/name, and commas between several", part)
		case slices.Contains(all, n):
			return nil, fmt.Errorf("%q; must be in the list once", part)
		}
		all = append(all, n)
	}
	return all, nil
}

// isName reports whether Kubernetes takes it as a name. It becomes part of a URL.
func isName(s string) bool {
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return s != "" && len(s) <= 253
}

// Options is what is followed.
type Options struct {
	// Pools are the names of the pools, each once.
	Pools []Name
	// Group is the only API group whose pools count; empty: all that we know.
	Group string
	// Fixed are pools that are not Kubernetes objects: their Pods are followed all the same.
	Fixed []inventory.Pool
	// Self is the Pod in which extproc runs; empty: it is not known, nor are other replicas.
	Self Name
	// EventsPort is where Pods publish events of their KV caches that announce nothing; 0:
	// they do not.
	EventsPort int
}

// Watcher follows pools.
type Watcher struct {
	// Constant after New.
	options Options
	client  *client
	log     *slog.Logger
	changed chan struct{} // holds one
	seen    map[kindOf]*shelf
}

// kindOf is a kind of objects in one namespace.
type kindOf struct {
	*kind
	namespace string
}

// New returns a Watcher that reaches Kubernetes as internal/kube finds it.
func New(o Options, log *slog.Logger) (*Watcher, error) {
	c, err := newClient()
	if err != nil {
		return nil, err
	}
	w := &Watcher{options: o, client: c, log: log, changed: make(chan struct{}, 1), seen: map[kindOf]*shelf{}}
	for _, k := range kinds {
		for _, namespace := range w.namespaces() {
			if k.pools && o.Group != "" && k.gvr.Group != o.Group || k != pods && len(o.Pools) == 0 {
				continue
			}
			w.seen[kindOf{k, namespace}] = &shelf{changed: w.stir, convert: k.convert, objects: map[string]any{}, events: o.EventsPort}
		}
	}
	return w, nil
}

func (w *Watcher) namespaces() []string {
	var all []string
	for _, n := range w.options.Pools {
		all = append(all, n.Namespace)
	}
	for i := range w.options.Fixed {
		all = append(all, w.options.Fixed[i].Namespace)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// stir says that something has changed.
func (w *Watcher) stir() {
	select {
	case w.changed <- struct{}{}:
	default: // who reads it is yet to look
	}
}

// grace is how long optional kinds may take to be listed for the first time, once the
// others are: a request with an objective comes not before that is known, if it is there.
const grace = time.Second

// Run follows the pools until ctx ends, and gives to set what there is whenever it has
// changed, but not before all that must be there was seen once.
func (w *Watcher) Run(ctx context.Context, set func(*fleet.Cluster)) error {
	g, ctx := errgroup.WithContext(ctx)
	for k, s := range w.seen {
		g.Go(func() error { return w.client.follow(ctx, k, s, w.log) })
	}
	g.Go(func() error {
		var since time.Time
		for {
			again := (<-chan time.Time)(nil)
			switch needed, all := w.complete(); {
			case all || needed && !since.IsZero() && time.Since(since) >= grace:
				set(w.cluster())
			case needed:
				if since.IsZero() {
					since = time.Now()
				}
				again = time.After(grace)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-w.changed:
			case <-again:
			}
		}
	})
	return g.Wait()
}

// complete reports whether Pods and pools were seen, and whether all else was, or can't be.
func (w *Watcher) complete() (needed, all bool) {
	needed, all = true, true
	pools := map[string]bool{}
	for k, s := range w.seen {
		listed, err := s.state()
		switch {
		case k.pools:
			pools[k.namespace] = pools[k.namespace] || listed
			all = all && (listed || absent(err))
		case k.kind == pods:
			needed = needed && listed
		default:
			all = all && (listed || absent(err))
		}
	}
	for _, ok := range pools {
		needed = needed && ok
	}
	return needed, needed && all
}

// cluster returns what there is now.
func (w *Watcher) cluster() *fleet.Cluster {
	c := &fleet.Cluster{}
	for _, n := range w.options.Pools {
		c.Pools = append(c.Pools, w.pool(n))
	}
	for _, p := range w.options.Fixed {
		c.Pools = append(c.Pools, fleet.Pool{Pool: p, Exists: true})
	}
	for k, s := range w.seen {
		if k.kind == pods {
			s.each(func(o any) { c.Pods = append(c.Pods, o.(inventory.Pod)) })
		}
	}
	c.Peers = peersOf(w.options.Self, c.Pods)
	return c
}

// pool returns a pool with what belongs to it: that of the first group that has it.
func (w *Watcher) pool(n Name) fleet.Pool {
	all := fleet.Pool{Pool: inventory.Pool{Namespace: n.Namespace, Name: n.Name}}
	var objectives []objective
	var rules []rewrite
	for _, k := range kinds {
		s := w.seen[kindOf{k, n.Namespace}]
		if s == nil || k == pods {
			continue
		}
		for _, o := range s.all() {
			switch o := o.(type) {
			case inventory.Pool:
				if o.Name == n.Name && !all.Exists {
					all.Pool, all.Exists = o, true
				}
			case objective:
				objectives = append(objectives, o)
			case rewrite:
				rules = append(rules, o)
			}
		}
	}
	all.Objectives = objectivesOf(n.Name, objectives)
	all.Rewrites, all.Otherwise = rewritesOf(n.Name, rules)
	return all
}

// Conditions returns what can't be seen.
func (w *Watcher) Conditions() []obs.Condition {
	var all []obs.Condition
	keys := slices.SortedFunc(maps.Keys(w.seen), func(a, b kindOf) int {
		return cmp.Or(cmp.Compare(a.name(), b.name()), cmp.Compare(a.namespace, b.namespace))
	})
	pools := map[string]bool{}
	for _, k := range keys {
		listed, err := w.seen[k].state()
		pools[k.namespace] = pools[k.namespace] || listed && k.pools
		switch {
		case err == nil:
		case k.optional && (missing(err) || absent(err) && w.elsewhere(k)):
			// Most clusters have one of the API groups, and most accounts rights to one.
		case k.optional && absent(err):
			all = append(all, obs.Condition{Code: "kubernetes-right", Text: fmt.Sprintf("%s of namespace %s: %v; they have no effect", k.name(), k.namespace, err),
				Next: "give extproc's account the verbs list and watch for them, if they are to count"})
		case listed:
			all = append(all, obs.Condition{Code: "kubernetes-away", Text: fmt.Sprintf("%s of namespace %s: %v; the last list stays in force", k.name(), k.namespace, err),
				Next: "bring the API server back; extproc tries again every few seconds"})
		default:
			all = append(all, obs.Condition{Code: "kubernetes-unseen", Text: fmt.Sprintf("%s of namespace %s: %v", k.name(), k.namespace, err),
				Next: "let extproc reach the API server, and give its account the verbs list and watch for them"})
		}
	}
	for _, namespace := range w.namespaces() {
		if len(w.options.Pools) > 0 && !pools[namespace] {
			all = append(all, obs.Condition{Code: "kubernetes-unseen", Text: "InferencePools of namespace " + namespace + " were not seen in any API group",
				Next: "install the inference extension's CRDs, and give extproc's account the verbs list and watch for inferencepools"})
		}
	}
	return all
}

// elsewhere reports whether another group's objects of a kind are seen.
func (w *Watcher) elsewhere(k kindOf) bool {
	for other, s := range w.seen {
		if listed, _ := s.state(); listed && other.namespace == k.namespace && other.gvr.Resource == k.gvr.Resource {
			return true
		}
	}
	return false
}

// missing reports whether an error says that the API server does not know something.
func missing(err error) bool {
	var denied *deniedError
	return errors.As(err, &denied) && denied.status == http.StatusNotFound
}

// absent reports whether an error says that something is not there, or not for us.
func absent(err error) bool {
	var denied *deniedError
	return errors.As(err, &denied)
}
