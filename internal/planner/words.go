package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// explain writes why a layout is as it is, and what it takes to reach the goal.
func (f *field) explain(l *Layout, r Request, free []int) {
	if len(l.Replicas) == 0 {
		l.Missing = f.missing(r, free)
		l.Why = "no place: it " + l.Missing
		return
	}
	var parts []string
	for _, same := range alike(l.Replicas) {
		parts = append(parts, f.describe(same))
	}
	spans := func(rep Replica) bool { return rep.Stages[0].Node != rep.Stages[len(rep.Stages)-1].Node }
	if alone := f.alone(r); alone != "" && slices.ContainsFunc(l.Replicas, spans) {
		parts = append(parts, alone)
	}
	l.Why = strings.Join(parts, "; ")
	if more := r.Goal.Replicas - len(l.Replicas); more > 0 {
		l.Missing = f.missing(r, free)
		l.Why += fmt.Sprintf("; %d of %d replicas have a place, one more %s", len(l.Replicas), r.Goal.Replicas, l.Missing)
	}
}

// alike groups replicas of one form, in their order.
func alike(all []Replica) [][]Replica {
	var groups [][]Replica
	for _, r := range all {
		i := slices.IndexFunc(groups, func(g []Replica) bool { return form(g[0]) == form(r) })
		if i < 0 {
			groups = append(groups, []Replica{r})
		} else {
			groups[i] = append(groups[i], r)
		}
	}
	return groups
}

// form is what replicas have in common that are described together: the layers of their
// stages, and what they generate, roughly.
func form(r Replica) string {
	return fmt.Sprint(layersOf(r), r.TensorParallel, fmt.Sprintf("%.1e", r.Decode))
}

func layersOf(r Replica) string {
	var all []string
	for _, s := range r.Stages {
		all = append(all, fmt.Sprint(s.Layers))
	}
	return strings.Join(all, " + ")
}

// shown is how many places of equal replicas are named.
const shown = 4

// describe writes where replicas of one form lie, and what is predicted for each.
func (f *field) describe(same []Replica) string {
	r := same[0]
	var places []string
	for _, s := range same[:min(shown, len(same))] {
		var names []string
		for _, stage := range s.Stages {
			names = append(names, stage.Node)
		}
		places = append(places, and(slices.Compact(names)))
	}
	if more := len(same) - shown; more > 0 {
		places = append(places, fmt.Sprintf("%d more", more))
	}
	places = slices.Compact(places)
	text := ""
	if len(same) > 1 {
		text = fmt.Sprintf("%d replicas, each ", len(same))
	}
	if len(r.Stages) == 1 {
		text += "whole on "
	} else {
		text += fmt.Sprintf("%d stages on ", len(r.Stages))
	}
	text += and(places)
	if len(same) > 1 {
		text = strings.ReplaceAll(text, " and ", " + ")
		text += ","
	} else if len(r.Stages) > 1 {
		text += ":"
	} else {
		text += ","
	}
	text += " " + layersOf(r) + " layers"
	if r.TensorParallel > 1 {
		text += fmt.Sprintf(" over %d devices each", r.TensorParallel)
	}
	if f.measured {
		text += fmt.Sprintf(", decode %s tok/s predicted", number(r.Decode))
	}
	return text
}

// and lists names: "a, b and c".
func and(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func number(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// alone writes what the node with most memory lacks for the whole model; empty: nothing.
func (f *field) alone(r Request) string {
	if len(f.Nodes) == 0 {
		return ""
	}
	n := slices.MaxFunc(f.Nodes, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Memory, b.Memory), cmp.Compare(b.Name, a.Name))
	})
	if lacks := r.need() - float64(n.Memory); lacks > 0 {
		return fmt.Sprintf("%s alone lacks %s", n.Name, size(lacks))
	}
	return ""
}

// missing writes what a replica that has no place needs.
func (f *field) missing(r Request, free []int) string {
	var memory, largest float64 // of what is free
	one := newTask(f, r, 1, free)
	room := 0
	for i := range one.units {
		u := &one.units[i]
		memory += max(0, u.memory)
		largest = max(largest, u.memory)
		room += one.room(u, false, false)
	}
	if !r.Model.Spans {
		memory = f.largestNode(one)
	}
	need := r.need() - float64(r.Model.Overhead) // as memory is without it
	if t := r; t.Goal.Token > 0 || t.Goal.FirstToken > 0 {
		t.Goal.Token, t.Goal.FirstToken, t.Goal.Replicas = 0, 0, 1
		if p := f.place(t, 1, slices.Clone(free), least, nil); len(p) > 0 {
			return f.slow(r, p[0])
		}
	}
	switch lacks := need - memory; {
	case len(one.units) == 0:
		return "needs a free node: all devices serve a stage, or there is none"
	case lacks > 0:
		return "needs " + size(lacks) + " more" + r.smaller(memory)
	case r.Model.Spans && room > 0:
		return fmt.Sprintf("needs nodes with room for whole layers of %s and the ends: the free ones have %s, at most %s in one",
			size(one.perLayer), size(memory), size(largest))
	default:
		return fmt.Sprintf("needs a node with %s: its layers are not split over nodes, and the largest free one has %s", size(need), size(largest))
	}
}

// largestNode returns the most that the free devices of one node have, in bytes.
func (f *field) largestNode(t *task) float64 {
	sum, most := map[int]float64{}, 0.0
	for _, u := range t.units {
		sum[u.node] += max(0, u.memory)
		most = max(most, sum[u.node])
	}
	return most
}

// slow writes how far the best replica is from the goal.
func (f *field) slow(r Request, best Replica) string {
	if g := r.Goal.FirstToken; g > 0 && best.FirstToken > g {
		return fmt.Sprintf("needs faster nodes: a first token takes %s at best, the goal is %s", best.FirstToken.Round(time.Millisecond), g)
	}
	return fmt.Sprintf("needs faster nodes: a token takes %s at best, the goal is %s", best.Token.Round(time.Millisecond), r.Goal.Token)
}

// variants are quantisations by their bits a weight, the largest first.
var variants = []struct {
	name string
	bits float64
}{{"q8", 8.5}, {"q6", 6.6}, {"q4", 4.8}, {"q3", 3.9}}

// smaller names a variant of the model that has room beside the processes' overhead; empty: there is none, or its
// parameters are not known.
func (r Request) smaller(memory float64) string {
	bytes := float64(r.Model.Bytes())
	for _, v := range variants {
		with := float64(r.Model.Parameters) * v.bits / 8
		if with > 0 && with < 0.9*bytes && r.need()-float64(r.Model.Overhead)-bytes+with <= memory {
			return ", or a " + v.name + " variant"
		}
	}
	return ""
}

// size writes bytes for a person.
func size(bytes float64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.0f MiB", bytes/(1<<20))
	default:
		return fmt.Sprintf("%.0f KiB", bytes/(1<<10))
	}
}
