// Package placing turns what the control plane knows into what internal/planner takes: models
// of a configuration and the headers of their weights, nodes of their reports, replicas of
// assignments. Called by xds, which lays models out, and by `millrace plan`, which shows how.
//
// Its one rule: both take the same, so that what is shown is what would be done.
package placing

import (
	"cmp"
	"math"
	"net"
	"strconv"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/planner"
	"millrace.dev/millrace/internal/weights"
	"millrace.dev/millrace/xds/fleetpb"
)

// room is the part of a node's memory that models may take where the operator does not say
// how much: the rest is the system's.
const room = 0.9

// overhead is what a backend's process takes beside weights and KV cache, by its kind, in bytes:
// compute buffers, and of vLLM what its framework needs.
var overhead = map[string]uint64{config.LlamaCpp: 64 << 20, config.VLLM: 1 << 30}

// Request is a model as the planner sees it, to have as many replicas as fit. llama.cpp splits
// layers over nodes, one after the other; vLLM is on one node, where its stages overlap and
// devices share layers.
func Request(name string, spec config.ModelSpec, s weights.Shape) planner.Request {
	vllm := spec.Backend.Kind == config.VLLM
	return planner.Request{
		Model: planner.Model{
			Name: name, Layers: s.Layers, LayerBytes: s.LayerBytes, EmbeddingBytes: s.EmbeddingBytes, HeadBytes: s.HeadBytes, Tied: s.Tied,
			Parameters: s.Parameters, KVBytesPerToken: s.KVBytesPerToken, Hidden: s.Hidden, Heads: s.Heads, KVHeads: s.KVHeads,
			Spans: !vllm, Tensor: vllm, Overlap: vllm, Overhead: overhead[spec.Backend.Kind],
		},
		Goal: planner.Goal{
			Context: spec.Backend.ContextTokens, Slots: spec.Backend.Slots,
			FirstToken: spec.Goal.FirstToken.Duration, Token: spec.Goal.Token.Duration,
		},
	}
}

// Fit returns how many replicas of a model have a place on nodes with so much memory each.
func Fit(r planner.Request, memory []uint64) int {
	var fleet planner.Fleet
	for i, m := range memory {
		fleet.Nodes = append(fleet.Nodes, planner.Node{Name: strconv.Itoa(i), Memory: m})
	}
	r.Goal.Replicas = 0
	return len(planner.Make(fleet, []planner.Request{r})[0].Replicas)
}

// Machine is the host of a node's engine. Nodes of one machine share its memory.
func Machine(r *fleetpb.NodeReport) string {
	host, _, _ := net.SplitHostPort(r.GetEngine().GetGrpcAddress())
	return cmp.Or(host, r.GetNode())
}

// Devices returns how many devices a node of that many on one machine has, and what each of
// them has for a model, in bytes: its GPUs, or else its host.
func Devices(t *fleetpb.Telemetry, sharing int) (n int, memory uint64) {
	least := uint64(0)
	for _, g := range t.GetGpus() {
		if !g.GetLost() {
			n++
			least = min(cmp.Or(least, g.GetMemoryTotalBytes()), g.GetMemoryTotalBytes())
		}
	}
	if given := t.GetModelMemoryBytes(); given > 0 {
		return n, given / uint64(max(1, n))
	}
	if n == 0 {
		least = t.GetMemoryTotalBytes() / uint64(max(1, sharing))
	}
	return n, uint64(room * float64(least))
}

// Memory is what a model may take on a node of that many on one machine, of all of its devices
// together, in bytes.
func Memory(t *fleetpb.Telemetry, sharing int) uint64 {
	n, memory := Devices(t, sharing)
	return uint64(max(1, n)) * memory
}

// Replica returns what an assignment is as a layout: each stage's layers by its share, as
// llama.cpp rounds them; of vLLM, ranks on one node.
func Replica(a *enginepb.Assignment, layers int) planner.Replica {
	r := planner.Replica{TensorParallel: int(max(1, a.GetBackend().GetTensorParallel()))}
	if ranks := int(a.GetBackend().GetPipelineParallel()); ranks > 1 && len(a.GetStages()) == 1 {
		for i := range ranks {
			r.Stages = append(r.Stages, planner.Stage{Node: a.GetStages()[0].GetNode(), Layers: (i+1)*layers/ranks - i*layers/ranks})
		}
		return r
	}
	var total, sum float64
	for _, s := range a.GetStages() {
		total += float64(s.GetShare())
	}
	had := 0
	for _, s := range a.GetStages() {
		sum += float64(s.GetShare())
		upTo := int(math.Round(float64(layers) * sum / total))
		r.Stages = append(r.Stages, planner.Stage{Node: s.GetNode(), Layers: upTo - had})
		had = upTo
	}
	return r
}
