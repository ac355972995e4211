package planner

import (
	"cmp"
)

// activation is the size of a number between two stages, in bytes.
const activation = 4

// unit is what one stage can lie on: devices of a node, as one model sees them.
type unit struct {
	node int // index in the fleet
	// layer and layerIn are the seconds that a layer takes for a token of the answer, and
	// of the prompt; head and headIn those of the output head.
	layer, layerIn, head, headIn float64
	// memory is what there is for layers, in bytes.
	memory float64
}

// task is one model that is laid out with one number of devices a stage.
type task struct {
	Request
	field *field
	// tensor is the devices of a stage.
	tensor int
	units  []unit
	// perLayer is the memory of a layer with its KV cache, in bytes.
	perLayer float64
	// stays has the groups that run already, as joined indices of nodes: among equals
	// they are better.
	stays map[string]bool
	// scratch are the stages that are weighed now.
	scratch []stage
}

// newTask returns the task on those devices that are free, by node.
func newTask(f *field, r Request, tensor int, free []int) *task {
	m := r.Model
	t := &task{Request: r, field: f, tensor: tensor}
	t.Goal.Slots, t.Goal.Prompt = max(1, r.Goal.Slots), cmp.Or(r.Goal.Prompt, Prompt)
	kv := float64(m.KVBytesPerToken) / float64(max(1, m.Layers)) * float64(t.Goal.Context) * float64(t.Goal.Slots)
	t.perLayer = float64(m.LayerBytes) + kv
	for i, n := range f.Nodes {
		for range free[i] / tensor {
			t.units = append(t.units, t.unit(i, n))
		}
	}
	return t
}

func (t *task) unit(i int, n Node) unit {
	m, devices := t.Model, float64(t.tensor)
	u := unit{
		node: i, memory: devices*float64(n.Memory) - float64(m.Overhead),
		layer: float64(m.LayerBytes) / (devices * n.Decode), layerIn: float64(m.LayerBytes) / (devices * n.Prefill),
		head: float64(m.HeadBytes) / (devices * n.Decode), headIn: float64(m.HeadBytes) / (devices * n.Prefill),
	}
	if t.tensor > 1 { // each layer adds up over the devices twice
		u.layer += 2 * n.Between.time(float64(m.Hidden*activation))
		u.layerIn += 2 * n.Between.time(float64(m.Hidden*activation*t.Goal.Prompt)) / float64(t.Goal.Prompt)
	}
	return u
}

// room is how many layers fit on a unit, as first or last stage or both.
func (t *task) room(u *unit, first, last bool) int {
	free := u.memory
	switch {
	case first && last:
		free -= float64(t.Model.ends())
	case first:
		free -= float64(t.Model.EmbeddingBytes)
	case last:
		free -= float64(t.Model.HeadBytes)
	}
	if free < 0 {
		return 0
	}
	return int(min(free/t.perLayer+1e-9, float64(t.Model.Layers)))
}

// time is how long so many bytes take.
func (l Link) time(bytes float64) float64 {
	s := l.Latency.Seconds()
	if l.Bandwidth > 0 {
		s += bytes / l.Bandwidth
	}
	return s
}

// stage is one stage of a replica that is weighed.
type stage struct {
	unit   int // index in the task
	room   int
	layers int
	// layer and layerIn are as in unit; once and onceIn what the stage takes beside its
	// layers: the way from the first stage and back, and the output head. In seconds.
	layer, layerIn, once, onceIn float64
}

// group is a replica that is weighed; without stages there is none.
type group struct {
	stages []stage
	// decode is in tokens per second, token and first in seconds.
	decode, token, first float64
}

// stagesOf fills scratch with the stages of units, in their order, and reports whether they
// have room for all layers with these as first and last.
//
// The first stage drives the others and gets its activations back from each, as
// llama.cpp's does.
func (t *task) stagesOf(units []int, first, last int) bool {
	t.scratch = t.scratch[:0]
	room := 0
	for _, at := range units {
		u := &t.units[at]
		s := stage{unit: at, room: t.room(u, at == first, at == last), layer: u.layer, layerIn: u.layerIn * float64(t.Goal.Prompt)}
		if s.room == 0 {
			return false
		}
		room += s.room
		if at != first {
			link := t.field.link(t.units[first].node, u.node)
			bytes := float64(t.Model.Hidden * activation)
			s.once, s.onceIn = 2*link.time(bytes), 2*link.time(bytes*float64(t.Goal.Prompt))
		}
		if at == last {
			s.once += u.head
			s.onceIn += u.headIn * float64(t.Goal.Prompt)
		}
		t.scratch = append(t.scratch, s)
	}
	return room >= t.Model.Layers && len(units) <= t.Model.Layers
}
