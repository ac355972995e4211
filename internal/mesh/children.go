package mesh

import (
	"maps"
	"slices"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/state"
)

// children turns what one engine says about its backend and shard processes
// into rows of the state. A restarted engine counts from 0 again; children continues.
type children struct {
	node    string
	engine  int              // restarts of the engine, as last seen
	counted map[string]count // by role
}

type count struct {
	before int // starts under earlier lives of the engine
	now    int // restarts in this life
}

// apply writes the rows of a status into the state.
func (c *children) apply(s *state.State, st *enginepb.Status) {
	engine := s.Find("engine@" + c.node)
	if engine == nil || engine.PID == 0 {
		return // the engine that said this is gone, and its children with it
	}
	if c.counted == nil {
		c.counted = map[string]count{}
	}
	if engine.Restarts != c.engine {
		c.newLife(engine.Restarts)
	}
	if len(st.GetProcesses()) > 0 || st.GetLoad().GetWake() != nil {
		forget(s, c.node, st) // a backend that is ended while nobody asks for it is none that is down
	}
	for _, p := range st.GetProcesses() {
		c.row(s, p)
	}
}

func (c *children) newLife(restarts int) {
	c.engine = restarts
	for role, n := range c.counted {
		c.counted[role] = count{before: n.before + n.now + 1}
	}
}

func (c *children) row(s *state.State, p *enginepb.Process) {
	role := p.GetRole()
	n := c.counted[role]
	n.now = int(p.GetRestarts())
	c.counted[role] = n
	name := role + "@" + c.node
	row := s.Find(name)
	if row == nil {
		s.Processes = insertAfter(s.Processes, "engine@"+c.node, state.Process{Name: name, Role: role, Node: c.node})
		row = s.Find(name)
	}
	row.PID, row.Restarts = int(p.GetPid()), n.before+n.now
	row.Addrs = childAddrs(role, p.GetAddress())
	if row.Since = p.GetSince().AsTime(); p.GetSince() == nil {
		row.Since = time.Now().UTC()
	}
	if row.PID == 0 {
		row.Reason = "its engine starts it again"
	}
}

func childAddrs(role, addr string) map[string]string {
	switch {
	case addr == "":
		return map[string]string{}
	case role == "shard":
		return map[string]string{"rpc": addr}
	default:
		return map[string]string{"http": addr}
	}
}

// forget removes rows of processes that the node has no more: its part in the
// fleet has changed.
func forget(s *state.State, node string, st *enginepb.Status) {
	kept := map[string]bool{}
	for _, p := range st.GetProcesses() {
		kept[p.GetRole()] = true
	}
	s.Processes = slices.DeleteFunc(s.Processes, func(p state.Process) bool {
		return p.Node == node && isChild(p.Role) && !kept[p.Role]
	})
}

func isChild(role string) bool { return role == "backend" || role == "shard" }

// dropChildren marks what died with a node's engine.
func dropChildren(s *state.State, node string) {
	for i := range s.Processes {
		p := &s.Processes[i]
		if p.Node == node && isChild(p.Role) && p.PID != 0 {
			p.PID, p.Since, p.Reason = 0, time.Now().UTC(), "died with its engine"
		}
	}
}

func insertAfter(ps []state.Process, name string, p state.Process) []state.Process {
	i := slices.IndexFunc(ps, func(q state.Process) bool { return q.Name == name })
	return slices.Insert(ps, i+1, p)
}

// rows returns the first state of the processes of a plan: all down.
func rows(specs []Spec) []state.Process {
	var ps []state.Process
	for _, s := range specs {
		ps = append(ps, state.Process{
			Name: s.Name, Role: s.Role, Node: s.Node, Addrs: maps.Clone(s.Addrs),
			Since: time.Now().UTC(), Reason: "not started yet",
		})
	}
	return ps
}
