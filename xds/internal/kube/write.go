package kube

import (
	"context"
	"encoding/json"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/kubeapi"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
)

const (
	// writeEvery is how often an object is written at most.
	writeEvery = time.Second
	// trustFor is how long the cache may lag behind what was written.
	trustFor = 5 * time.Second
	// writeFor bounds one write.
	writeFor = 5 * time.Second
	// drift is by how many percent a row's weight must have changed to be written.
	drift = 5
	// fieldManager is who owns what is written.
	fieldManager = "millrace-xds"
)

// written is what was written last of something, and when.
type written struct {
	what any
	at   time.Time
	err  string
}

// writeAll writes statuses and labels that have changed, as long as this xds surely has
// the lease, until ctx ends.
func (c *Cluster) writeAll(ctx context.Context, f Fleet) error {
	if !c.synced(ctx, append(kinds(), nodeKinds()...)...) {
		return nil
	}
	done := make(map[any]written)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		snap, _ := f.Latest()
		if !c.Leads() || !snap.Settled {
			clear(done)
			continue
		}
		if err := c.writeStatuses(ctx, snap, done); err != nil {
			return err
		}
		if err := c.writeLabels(ctx, snap, done); err != nil {
			return err
		}
	}
}

// writeStatuses writes those that are not as they should be.
func (c *Cluster) writeStatuses(ctx context.Context, snap *fleet.Snapshot, done map[any]written) error {
	c.mu.Lock()
	judged := c.judged
	c.mu.Unlock()
	if snap.Desired == nil || snap.Desired != judged.published.State {
		return nil // it is of another state: the next one
	}
	present := make(map[desired.Ref]unstructured.Unstructured)
	for _, kind := range kindNames {
		items, err := c.listKind(ctx, kind)
		if err != nil {
			return err
		}
		for _, u := range items {
			present[desired.Ref{Kind: kind, Name: u.GetName()}] = u
		}
	}
	for _, v := range judged.verdicts {
		u, ok := present[v.Ref]
		if !ok || string(u.GetUID()) != v.UID {
			continue
		}
		status, same := c.statusFor(v, snap, u)
		if same || done[v.Ref].recent(status) {
			continue
		}
		done[v.Ref] = c.note(v.Kind+"/"+v.Name, done[v.Ref], status, c.writeStatus(ctx, v, status))
	}
	return nil
}

// statusFor returns the status that an object is to have, and whether it has it.
func (c *Cluster) statusFor(v verdict, snap *fleet.Snapshot, u unstructured.Unstructured) (status any, same bool) {
	switch v.Kind {
	case config.KindModel:
		var had kubeapi.ModelStatus
		statusOf(u, &had)
		s := modelStatus(v, snap, c.cfg.Address)
		keepTimes(&s.Summary, &had.Summary, now())
		keepRowTimes(s.Rows, had.Rows, now())
		keepWeights(s.Rows, had.Rows)
		return s, equal(s, had)
	case config.KindEndpoints:
		var had kubeapi.EndpointsStatus
		statusOf(u, &had)
		s := endpointsStatus(v, snap)
		keepTimes(&s.Summary, &had.Summary, now())
		return s, equal(s, had)
	default:
		var had kubeapi.PolicyStatus
		statusOf(u, &had)
		s := policyStatus(v, snap, c.unmet())
		keepTimes(&s.Summary, &had.Summary, now())
		return s, equal(s, had)
	}
}

// keepWeights leaves weights as they are that have merely drifted: they change with every
// measurement.
func keepWeights(rows, before []kubeapi.Row) {
	old := make(map[string]kubeapi.Row, len(before))
	for _, r := range before {
		old[r.Name] = r
	}
	for i := range rows {
		r := &rows[i]
		if o, ok := old[r.Name]; ok && o.State == r.State && max(r.Weight-o.Weight, o.Weight-r.Weight) <= drift {
			r.Weight = o.Weight
		}
	}
}

// equal reports whether two statuses are written alike.
func equal(a, b any) bool {
	x, y := asJSON(a), asJSON(b)
	return reflect.DeepEqual(x, y)
}

// asJSON returns a status as JSON has it.
func asJSON(v any) (out map[string]any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic("kube: status: " + err.Error()) // our own types
	}
	return out
}

// recent reports whether the same was written a moment ago: the cache will show it.
func (w written) recent(what any) bool {
	return time.Since(w.at) < trustFor && w.err == "" && reflect.DeepEqual(w.what, what)
}

// note remembers a write, and logs its error if that is news.
func (c *Cluster) note(name string, before written, what any, err error) written {
	w := written{what: what, at: time.Now()}
	if err != nil {
		if w.err = err.Error(); w.err != before.err {
			c.cfg.Log.Warn("not written", "object", name, "err", err)
		}
	}
	return w
}

// writeStatus writes the status of an object. One that has gone meanwhile needs none.
func (c *Cluster) writeStatus(ctx context.Context, v verdict, status any) error {
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	u := untyped(v.Kind)
	u.SetNamespace(c.cfg.Namespace)
	u.SetName(v.Name)
	u.Object["status"] = asJSON(status)
	err := c.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldManager), client.ForceOwnership)
	return client.IgnoreNotFound(err)
}

// writeLabels writes on engines' Pods what they serve.
func (c *Cluster) writeLabels(ctx context.Context, snap *fleet.Snapshot, done map[any]written) error {
	_, pods, err := c.listNodes(ctx)
	if err != nil {
		return err
	}
	models := serves(snap)
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		changes := labelChanges(p.Labels, models[wire.NodeName(p.Spec.NodeName)])
		if len(changes) == 0 || done[p.UID].recent(changes) {
			continue
		}
		done[p.UID] = c.note("Pod/"+p.Name, done[p.UID], changes, c.writeLabel(ctx, p, changes))
	}
	return nil
}

func (c *Cluster) writeLabel(ctx context.Context, p corev1.Pod, changes map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, writeFor)
	defer cancel()
	labels := make(map[string]any, len(changes))
	for l, v := range changes {
		if labels[l] = v; v == "" {
			labels[l] = nil // taken away
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	err = c.client.Patch(ctx, &p, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(fieldManager))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
