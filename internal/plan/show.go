package plan

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"millrace.dev/millrace/internal/planner"
)

// layoutView is the JSON of a model's layout.
type layoutView struct {
	Model string `json:"model"`
	// Written is whether the file has a layout of its own, which wins over this one.
	Written bool `json:"written"`
	// WeightBytes and KVBytes are what a replica takes, undivided.
	WeightBytes uint64        `json:"weightBytes"`
	KVBytes     uint64        `json:"kvBytes"`
	Replicas    []replicaView `json:"replicas"`
	Why         string        `json:"why"`
	Missing     string        `json:"missing,omitempty"`
	// Decode is tokens per second of all replicas as predicted.
	Decode float64 `json:"decodeTokensPerSecond,omitempty"`
}

// replicaView is the JSON of a replica.
type replicaView struct {
	Stages         []stageView `json:"stages"`
	TensorParallel int         `json:"tensorParallel"`
	Decode         float64     `json:"decodeTokensPerSecond,omitempty"`
	TokenMs        float64     `json:"tokenMs,omitempty"`
	FirstTokenMs   float64     `json:"firstTokenMs,omitempty"`
}

type stageView struct {
	Node   string `json:"node"`
	Layers int    `json:"layers"`
}

func viewOf(s subject, l planner.Layout) layoutView {
	v := layoutView{
		Model: l.Model, Written: s.written, WeightBytes: s.Model.Bytes(), KVBytes: kvBytes(s), Why: l.Why, Missing: l.Missing,
		Decode: rounded(l.Decode()), Replicas: []replicaView{},
	}
	for _, r := range l.Replicas {
		rep := replicaView{TensorParallel: r.TensorParallel, Decode: rounded(r.Decode), TokenMs: rounded(1e3 * r.Token.Seconds()), FirstTokenMs: rounded(1e3 * r.FirstToken.Seconds())}
		for _, st := range r.Stages {
			rep.Stages = append(rep.Stages, stageView{st.Node, st.Layers})
		}
		v.Replicas = append(v.Replicas, rep)
	}
	return v
}

// kvBytes is the KV cache of a replica.
func kvBytes(s subject) uint64 {
	return s.Model.KVBytesPerToken * uint64(s.Goal.Context) * uint64(max(1, s.Goal.Slots))
}

func rounded(v float64) float64 { return math.Round(v*100) / 100 }

// planView is all that -json prints.
type planView struct {
	Models []layoutView `json:"models"`
	// Steps lead from what runs to the layouts; missing where no mesh was asked.
	Steps []stepView `json:"steps,omitempty"`
}

type stepView struct {
	Model string `json:"model"`
	// Do is "start" or "stop".
	Do    string   `json:"do"`
	Nodes []string `json:"nodes"`
	Text  string   `json:"text"`
}

func (p planned) view() planView {
	v := planView{Models: []layoutView{}}
	for i, l := range p.layouts {
		v.Models = append(v.Models, viewOf(p.subjects[i], l))
	}
	for _, s := range p.steps {
		step := stepView{Model: s.Model, Do: "start", Text: s.Text}
		if s.Stop {
			step.Do = "stop"
		}
		for _, st := range s.Replica.Stages {
			step.Nodes = append(step.Nodes, st.Node)
		}
		v.Steps = append(v.Steps, step)
	}
	return v
}

func (p planned) show(o Options) error {
	if o.JSON {
		enc := json.NewEncoder(o.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(p.view())
	}
	var b strings.Builder
	for i, l := range p.layouts {
		s := p.subjects[i]
		fmt.Fprintf(&b, "%s: %d layers, %d MiB of weights, %d MiB of KV cache for %d × %d tokens\n", l.Model, s.Model.Layers, s.Model.Bytes()>>20, kvBytes(s)>>20, max(1, s.Goal.Slots), s.Goal.Context)
		fmt.Fprintf(&b, "  %s\n", l.Why)
		if len(l.Replicas) > 0 {
			fmt.Fprintf(&b, "  spec: {%s}\n", specOf(s, l))
		}
		if several := crowded(l); len(several) > 0 {
			fmt.Fprintf(&b, "  a node runs one engine, which serves one replica: run as many as there are replicas on %s, each as a node of its own\n", strings.Join(several, ", "))
		}
		if s.written {
			b.WriteString("  the file has a spec.layout of its own, which wins\n")
		}
	}
	if p.running {
		b.WriteString(stepsOf(p.steps))
	}
	_, err := o.Out.Write([]byte(b.String()))
	return err
}

// crowded returns the nodes with several replicas or, of one replica, several stages that are no
// ranks of one engine.
func crowded(l planner.Layout) []string {
	uses := map[string]int{}
	var all []string
	for _, r := range l.Replicas {
		for i, st := range r.Stages {
			if i > 0 && st.Node == r.Stages[i-1].Node {
				continue // a rank of the engine
			}
			if uses[st.Node]++; uses[st.Node] == 2 {
				all = append(all, st.Node)
			}
		}
	}
	return all
}

// specOf writes a layout as a Model's spec has it. Stages on devices of one node are vLLM's
// affair.
func specOf(s subject, l planner.Layout) string {
	text := fmt.Sprintf("replicas: %d, layout: [", len(l.Replicas))
	for i, r := range l.Replicas {
		if i > 0 {
			text += ", "
		}
		stages := r.Stages
		if !s.Model.Spans {
			stages = stages[:1]
		}
		var nodes, shares []string
		for _, st := range stages {
			nodes, shares = append(nodes, st.Node), append(shares, fmt.Sprint(st.Layers))
		}
		text += fmt.Sprintf("{stages: %d, ", len(stages))
		if len(stages) > 1 {
			text += "shares: [" + strings.Join(shares, ", ") + "], "
		}
		if len(crowded(l)) == 0 {
			text += "nodes: [" + strings.Join(nodes, ", ") + "]"
		}
		text = strings.TrimSuffix(text, ", ") + "}"
	}
	text += "]"
	if first := l.Replicas[0]; !s.Model.Spans && first.TensorParallel*len(first.Stages) > 1 {
		text += fmt.Sprintf(", backend: {kind: vllm, tensorParallel: %d, pipelineParallel: %d}", first.TensorParallel, len(first.Stages))
	}
	return text
}
