package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/kubeapi"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
)

// maxMessage bounds a condition's message, in bytes; the API server's own is 32768.
const maxMessage = 4096

// maxRows bounds the rows of a model.
const maxRows = 1024

// modelStatus returns the status of a model, but for its times. It depends on what
// became of the object and on the snapshot alone.
func modelStatus(v verdict, snap *fleet.Snapshot, address string) kubeapi.ModelStatus {
	m := modelView{verdict: v, snap: snap, states: engineStates(snap)}
	if d, ok := snap.Desired.Model(v.Name); ok && !d.Spec.Implied {
		m.inForce, m.desired = d.Generation, snap.Replicas(d)
	}
	m.count()
	s := kubeapi.ModelStatus{
		Summary: summary(v, m.accepted(), m.planned(), m.ready(), m.progressing(), m.degraded()),
		Ready:   fmt.Sprintf("%d/%d", m.up, m.total), Replicas: int32(m.placed), ReadyReplicas: int32(m.replicasUp),
		Selector: servesPrefix + v.Name + "=true", Nodes: strings.Join(m.nodes, ","), Rows: m.rows, Address: address,
	}
	return s
}

// modelView is what is seen of one model.
type modelView struct {
	verdict
	snap   *fleet.Snapshot
	states map[string]enginepb.State
	// inForce is the generation of what is in force; 0: nothing is. desired has the names of
	// the replicas of that.
	inForce int64
	desired []string

	rows  []kubeapi.Row
	nodes []string
	// up of total rows take requests, replicasUp of them replicas; placed replicas have
	// their nodes. lost, starting and draining have sentences on those that don't.
	up, total, replicasUp, placed int
	unplaced, starting, failed    []string
}

// engineStates returns the state of each node's engine that is known.
func engineStates(snap *fleet.Snapshot) map[string]enginepb.State {
	all := make(map[string]enginepb.State, len(snap.Nodes))
	for _, n := range snap.Nodes {
		if e := n.Report.GetEngine(); e != nil {
			all[n.Name] = e.GetState()
		}
	}
	return all
}

// count makes the rows: of the desired replicas, of what is left behind, and of
// endpoints that other objects name.
func (m *modelView) count() {
	weights := uint64(0)
	by := make(map[string]fleet.Endpoint)
	var others []fleet.Endpoint
	for _, e := range m.snap.Endpoints {
		if e.Model != m.Name {
			continue
		}
		weights += uint64(e.Weight)
		if by[e.Replica] = e; e.Foreign != nil || !m.desires(e.Replica) {
			others = append(others, e)
		}
	}
	for _, name := range m.desired {
		e, known := by[name]
		row := kubeapi.Row{Name: name, Nodes: m.snap.Placed[name], State: kubeapi.StateUnplaced, Reason: clip(m.snap.Waits[name])}
		switch nodes := m.snap.Placed[name]; {
		case known:
			row = m.row(e, name)
		case nodes != nil:
			row.State, row.Reason = kubeapi.StateStarting, "its nodes have not reported yet"
		}
		if row.State != kubeapi.StateUnplaced {
			m.placed++
		}
		m.add(row, weights, e.Weight)
		if row.State == kubeapi.StateReady {
			m.replicasUp++
		}
	}
	for _, e := range others {
		name := e.Replica
		if e.Foreign != nil {
			name = e.Address
		}
		m.add(m.row(e, name), weights, e.Weight)
	}
	slices.Sort(m.nodes)
	m.nodes = slices.Compact(m.nodes)
	if len(m.rows) > maxRows {
		m.rows = m.rows[:maxRows]
	}
}

func (m *modelView) desires(replica string) bool {
	return slices.Contains(m.desired, replica)
}

// add counts a row.
func (m *modelView) add(r kubeapi.Row, weights uint64, weight uint32) {
	m.total++
	why := r.Name
	if r.Reason != "" {
		why += ": " + r.Reason
	}
	switch r.State {
	case kubeapi.StateReady:
		m.up++
		r.Weight = int32((uint64(weight)*100 + weights/2) / max(1, weights))
	case kubeapi.StateUnplaced:
		m.unplaced = append(m.unplaced, why)
	case kubeapi.StateStarting, kubeapi.StateDraining:
		m.starting = append(m.starting, why)
	default:
		m.failed = append(m.failed, why)
	}
	m.nodes = append(m.nodes, r.Nodes...)
	m.rows = append(m.rows, r)
}

// row returns the row of an endpoint.
func (m *modelView) row(e fleet.Endpoint, name string) kubeapi.Row {
	r := kubeapi.Row{Name: name, Nodes: e.Nodes, Reason: clip(e.Reason), State: kubeapi.StateEjected}
	state := enginepb.State_READY // the worst of its nodes
	for _, n := range e.Nodes {
		if s, ok := m.states[n]; ok && s != enginepb.State_READY {
			state = s
		}
	}
	switch {
	case e.Membership == fleet.Healthy:
		r.State = kubeapi.StateReady
	case e.Foreign != nil:
	case state == enginepb.State_DRAINING || strings.Contains(e.Reason, "leaves: "):
		r.State = kubeapi.StateDraining
	case state == enginepb.State_BROKEN:
		r.State = kubeapi.StateFailed
	case state != enginepb.State_READY || strings.Contains(e.Reason, "older assignment"):
		r.State = kubeapi.StateStarting
	}
	return r
}

// accepted states whether the present content is in force.
func (m *modelView) accepted() metav1.Condition { return acceptance(m.verdict, m.snap) }

func acceptance(v verdict, snap *fleet.Snapshot) metav1.Condition {
	c := metav1.Condition{Type: kubeapi.Accepted, Status: metav1.ConditionTrue, Reason: v.reason, ObservedGeneration: v.Generation}
	var texts []string
	for _, f := range v.faults {
		texts = append(texts, f.Error())
	}
	for _, o := range snap.Objects {
		if o.Kind != v.Kind || o.Name != v.Name || len(v.faults) > 0 {
			continue
		}
		if a := o.Conditions[0]; !a.Status {
			c.Reason = a.Reason
			texts = append(texts, a.Message)
		}
	}
	if len(texts) == 0 {
		return c
	}
	c.Status = metav1.ConditionFalse
	if c.Message = strings.Join(texts, "; "); v.holds != nil && v.refused() {
		c.Message += fmt.Sprintf("; generation %d stays in force", v.holds.Generation)
	} else if v.holds == nil {
		c.Message += "; nothing of it is in force"
	}
	c.Message = clip(c.Message)
	return c
}

// condition is a condition of a model.
func (m *modelView) condition(typ string, status bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: typ, Status: metav1.ConditionFalse, Reason: reason, Message: clip(message), ObservedGeneration: m.inForce}
	if status {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func (m *modelView) planned() metav1.Condition {
	if len(m.unplaced) > 0 {
		return m.condition(kubeapi.Planned, false, kubeapi.ReasonUnplaced, strings.Join(m.unplaced, "; "))
	}
	return m.condition(kubeapi.Planned, true, kubeapi.ReasonPlaced, "")
}

func (m *modelView) ready() metav1.Condition {
	missing := strings.Join(slices.Concat(m.failed, m.unplaced, m.starting), "; ")
	switch {
	case m.up == 0 && m.total == 0 && m.asleep():
		return m.condition(kubeapi.Ready, true, wire.Asleep, "no replica runs while nobody asks; the next request waits until one has started")
	case m.up == 0 && m.total == 0:
		return m.condition(kubeapi.Ready, false, kubeapi.ReasonNoneReady, "no replicas are desired, and no endpoints serve it")
	case m.up == 0 && len(m.starting) > 0:
		return m.condition(kubeapi.Ready, false, kubeapi.ReasonStarting, missing)
	case m.up == 0:
		return m.condition(kubeapi.Ready, false, kubeapi.ReasonNoneReady, missing)
	case m.up < m.total:
		return m.condition(kubeapi.Ready, true, kubeapi.ReasonSomeReady, missing)
	}
	return m.condition(kubeapi.Ready, true, kubeapi.ReasonAllReady, "")
}

// progressing states whether something is on its way.
func (m *modelView) progressing() metav1.Condition {
	var moving []string
	for _, name := range m.desired {
		if why := m.snap.Waits[name]; why != "" && m.snap.Placed[name] != nil {
			moving = append(moving, name+": "+why)
		}
	}
	switch {
	case len(moving) > 0:
		return m.condition(kubeapi.Progressing, true, reasonRollingOut, strings.Join(moving, "; "))
	case len(m.starting) > 0:
		reason := kubeapi.ReasonStarting
		if !slices.ContainsFunc(m.rows, func(r kubeapi.Row) bool { return r.State == kubeapi.StateStarting }) {
			reason = kubeapi.ReasonDraining
		}
		return m.condition(kubeapi.Progressing, true, reason, strings.Join(m.starting, "; "))
	}
	return m.condition(kubeapi.Progressing, false, kubeapi.ReasonStable, "")
}

// asleep reports whether there are no replicas as nobody asks.
func (m *modelView) asleep() bool {
	s, scaled := m.snap.Scaled[m.Name]
	return scaled && s.Min == 0
}

// reasonRollingOut is of Progressing: replicas are changed or moved, one after the other.
const reasonRollingOut = "RollingOut"

// degraded states whether less is served than desired and nothing is on its way.
func (m *modelView) degraded() metav1.Condition {
	missing := slices.Concat(m.failed, m.unplaced)
	switch {
	case len(missing) == 0:
		return m.condition(kubeapi.Degraded, false, kubeapi.ReasonAsDesired, "")
	case len(m.failed) > 0:
		return m.condition(kubeapi.Degraded, true, kubeapi.ReasonFailed, strings.Join(missing, "; "))
	}
	return m.condition(kubeapi.Degraded, true, kubeapi.ReasonUnplaced, strings.Join(missing, "; "))
}

// endpointsStatus returns the status of an Endpoints object, but for its times.
func endpointsStatus(v verdict, snap *fleet.Snapshot) kubeapi.EndpointsStatus {
	up, total := 0, 0
	for _, e := range snap.Endpoints {
		if e.Foreign != nil && e.First && e.Foreign.Source == v.Kind+"/"+v.Name {
			if total++; e.Membership == fleet.Healthy {
				up++
			}
		}
	}
	return kubeapi.EndpointsStatus{Summary: summary(v, acceptance(v, snap), readiness(v, snap)), Ready: fmt.Sprintf("%d/%d", up, total)}
}

// policyStatus returns the status of a Policy, but for its times. unmet is what of it
// can't be followed.
func policyStatus(v verdict, snap *fleet.Snapshot, unmet []obs.Condition) kubeapi.PolicyStatus {
	d := metav1.Condition{Type: kubeapi.Degraded, Status: metav1.ConditionFalse, Reason: kubeapi.ReasonAsDesired, ObservedGeneration: v.Generation}
	var texts []string
	for _, c := range unmet {
		texts = append(texts, c.Text)
	}
	if len(unmet) > 0 {
		d.Status, d.Reason, d.Message = metav1.ConditionTrue, reasonOfCode(unmet[0].Code), clip(strings.Join(texts, "; "))
	}
	return kubeapi.PolicyStatus{Summary: summary(v, acceptance(v, snap), readiness(v, snap), d)}
}

// reasonOfCode returns a condition's code as Kubernetes has reasons: "istio-forbidden" is
// "IstioForbidden".
func reasonOfCode(code string) string {
	var b strings.Builder
	for _, word := range strings.Split(code, "-") {
		b.WriteString(strings.ToUpper(word[:min(1, len(word))]) + word[min(1, len(word)):])
	}
	return b.String()
}

// unmet returns what of the policy can't be followed.
func (c *Cluster) unmet() []obs.Condition {
	if c.cfg.Unmet == nil {
		return nil
	}
	return c.cfg.Unmet()
}

// readiness is the condition Ready of an object of which the fleet states it.
func readiness(v verdict, snap *fleet.Snapshot) metav1.Condition {
	c := metav1.Condition{Type: kubeapi.Ready, Status: metav1.ConditionFalse, Reason: kubeapi.ReasonNoneReady, Message: "nothing of it is in force"}
	for _, o := range snap.Objects {
		if o.Kind != v.Kind || o.Name != v.Name || o.Generation == 0 || len(o.Conditions) < 2 {
			continue
		}
		r := o.Conditions[1]
		c.Reason, c.Message, c.ObservedGeneration = r.Reason, clip(r.Message), r.Observed
		if r.Status {
			c.Status = metav1.ConditionTrue
		}
	}
	return c
}

// summary returns what all statuses have. The reason is that of what matters most: what
// is refused, what serves nothing, what is less than desired, what is on its way.
func summary(v verdict, conditions ...metav1.Condition) kubeapi.Summary {
	s := kubeapi.Summary{ObservedGeneration: v.Generation, Conditions: conditions}
	if v.holds != nil && v.refused() {
		s.InForce = &kubeapi.InForce{Generation: v.holds.Generation, Spec: runtime.RawExtension{Raw: v.holds.Spec}}
	}
	order := []struct {
		typ   string
		wrong metav1.ConditionStatus
	}{
		{kubeapi.Accepted, metav1.ConditionFalse}, {kubeapi.Ready, metav1.ConditionFalse}, {kubeapi.Degraded, metav1.ConditionTrue},
		{kubeapi.Planned, metav1.ConditionFalse}, {kubeapi.Progressing, metav1.ConditionTrue}, {kubeapi.Ready, metav1.ConditionTrue},
	}
	for _, o := range order {
		for _, c := range conditions {
			if c.Type == o.typ && c.Status == o.wrong {
				s.Reason, s.Message = c.Reason, c.Message
				return s
			}
		}
	}
	return s
}

// keepTimes dates the conditions: one whose status is as before has its time from there.
func keepTimes(s, before *kubeapi.Summary, now time.Time) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		for _, old := range before.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
}

// keepRowTimes does so for rows.
func keepRowTimes(rows, before []kubeapi.Row, now time.Time) {
	old := make(map[string]kubeapi.Row, len(before))
	for _, r := range before {
		old[r.Name] = r
	}
	for i := range rows {
		rows[i].Since = metav1.NewTime(now.Truncate(time.Second))
		if o, ok := old[rows[i].Name]; ok && o.State == rows[i].State {
			rows[i].Since = o.Since
		}
	}
}

// clip makes a text short enough for a status.
func clip(s string) string {
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}
