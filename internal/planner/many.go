package planner

import (
	"cmp"
	"slices"
	"time"
)

// lots is how many models there are before less is tried for each, and least what is.
const (
	lots  = 8
	least = 4
)

// effortOf is how often a few devices of each of so many models are laid out anew.
func effortOf(models int) int {
	if models <= lots {
		return rounds
	}
	return max(least, rounds*lots/models)
}

// layOut lays all requests out. kept has what must stay of each, nil: nothing.
func (f *field) layOut(requests []Request, kept [][]Replica) []Layout {
	free, layouts := f.devices(), make([]Layout, len(requests))
	for i := range kept {
		for _, r := range kept[i] {
			f.take(free, r, -1)
		}
		layouts[i].Replicas = kept[i]
	}
	effort := effortOf(len(requests))
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(requests[b].need(), requests[a].need()) })
	for _, i := range order {
		want := max(1, requests[i].Goal.Replicas) - len(layouts[i].Replicas)
		if want > 0 {
			layouts[i].Replicas = append(layouts[i].Replicas, f.place(requests[i], want, free, effort, nil)...)
		}
	}
	f.share(requests, layouts, kept, order, free, effort)
	for i, r := range requests {
		layouts[i].Model = r.Model.Name
		f.explain(&layouts[i], r, free)
	}
	return layouts
}

// share gives what is left to the models that are to have as many replicas as fit: to each
// its part of the nodes, and then whatever is left.
func (f *field) share(requests []Request, layouts []Layout, kept [][]Replica, order, free []int, effort int) {
	var open []int
	for _, i := range order {
		if requests[i].Goal.Replicas == 0 {
			open = append(open, i)
		}
	}
	for pass := range 2 {
		left := slices.Clone(free)
		for k, i := range open {
			part := slices.Clone(left)
			if pass == 0 && len(open) > 1 {
				part = everyNth(left, k, len(open))
			}
			var had []Replica
			if kept != nil {
				had = kept[i]
			}
			old := layouts[i].Replicas[len(had):]
			stays := map[string]bool{}
			for _, r := range old {
				f.take(part, r, 1)
				stays[keyOf(r)] = true
			}
			all := f.place(requests[i], 0, part, effort, stays)
			if total(all) < total(old) {
				continue
			}
			for _, r := range old {
				f.take(free, r, 1)
			}
			for _, r := range all {
				f.take(free, r, -1)
			}
			layouts[i].Replicas = slices.Concat(had, all)
			if pass > 0 || len(open) == 1 {
				left = slices.Clone(free)
			}
		}
		if len(open) < 2 {
			break
		}
	}
}

func total(rs []Replica) float64 { return Layout{Replicas: rs}.Decode() }

// everyNth returns the free devices of each nth node that has any, from the kth on.
func everyNth(free []int, k, n int) []int {
	part, seen := make([]int, len(free)), 0
	for i, devices := range free {
		if devices == 0 {
			continue
		}
		if seen%n == k {
			part[i] = devices
		}
		seen++
	}
	return part
}

// need is what a replica takes of memory, in bytes.
func (r Request) need() float64 {
	t := newTask(&field{}, r, 1, nil)
	return float64(r.Model.Layers)*t.perLayer + float64(r.Model.ends()+r.Model.Overhead)
}

// place returns the best replicas on free devices, which are taken: so many, or as many
// as fit with 0. The devices of a stage are as many everywhere, as backends have it.
func (f *field) place(r Request, want int, free []int, effort int, stays map[string]bool) []Replica {
	r.Goal.Replicas = want
	var best packing
	var by *task
	for _, tensor := range f.tensors(r.Model) {
		t := newTask(f, r, tensor, free)
		t.stays = stays
		p := t.solve(effort)
		if by == nil || want > 0 && len(p) > len(best) || (want == 0 || len(p) == len(best)) && t.worth(p) > by.worth(best)*(1+1e-12) {
			best, by = p, t
		}
	}
	slices.SortStableFunc(best, func(a, b group) int { return cmp.Compare(b.decode, a.decode) })
	var all []Replica
	for _, g := range best {
		rep := by.replica(g)
		if want > 0 {
			f.take(free, rep, -1)
		}
		all = append(all, rep)
	}
	return all
}

// tensors returns the numbers of devices that can share a layer.
func (f *field) tensors(m Model) []int {
	all, most := []int{1}, 1
	if !m.Tensor {
		return all
	}
	for _, n := range f.Nodes {
		most = max(most, n.Devices)
	}
	for n := 2; n <= most; n++ {
		if m.Heads%n == 0 && m.KVHeads%n == 0 {
			all = append(all, n)
		}
	}
	return all
}

// replica returns what a group is for those who asked.
func (t *task) replica(g group) Replica {
	r := Replica{TensorParallel: t.tensor, Decode: g.decode, Token: seconds(g.token), FirstToken: seconds(g.first)}
	for _, s := range g.stages {
		r.Stages = append(r.Stages, Stage{Node: t.field.Nodes[t.units[s.unit].node].Name, Layers: s.layers})
	}
	return r
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// take changes how many devices are free by those of a replica.
func (f *field) take(free []int, r Replica, sign int) {
	for _, s := range r.Stages {
		if i, known := f.at[s.Node]; known {
			free[i] += sign * max(1, r.TensorParallel)
		}
	}
}
