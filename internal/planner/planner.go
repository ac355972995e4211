// Package planner decides how models lie on nodes: how many replicas, of how many stages,
// with how many layers each, on how many of a node's devices. Called by millrace plan.
//
// Its one rule: it is a function of what it is given. All speeds are bytes of weights, so
// that what was measured with one model predicts another.
package planner

import "time"

// Model is what the plan of a model depends on.
type Model struct {
	// Name of the model.
	Name string
	// Layers is how many there are, all of one size.
	Layers int
	// LayerBytes are the weights of a layer; EmbeddingBytes lie on the first stage, and
	// HeadBytes, the output head and whatever else there is once, on the last.
	LayerBytes, EmbeddingBytes, HeadBytes uint64
	// Tied is whether the head is a copy of the embedding, so that a stage that is first and
	// last has it once.
	Tied bool
	// Parameters is how many numbers the weights are; 0: not known.
	Parameters uint64
	// KVBytesPerToken is what a token takes in the KV cache of all layers.
	KVBytesPerToken uint64
	// Hidden is the width of the activations between two layers, in numbers.
	Hidden int
	// Heads and KVHeads are the attention heads of a layer; 0: not known.
	Heads, KVHeads int
	// Spans is whether the stages of a replica may lie on several nodes.
	Spans bool
	// Tensor is whether the devices of a node can share each layer.
	Tensor bool
	// Overlap is whether the stages of a replica work on different requests at a time.
	Overlap bool
	// Overhead is what each stage takes beside weights and KV cache, in bytes.
	Overhead uint64
}

// Bytes are the model's weights in one process.
func (m Model) Bytes() uint64 {
	return uint64(m.Layers)*m.LayerBytes + m.ends()
}

// ends are the bytes of a stage that is first and last beside its layers.
func (m Model) ends() uint64 {
	if m.Tied {
		return max(m.EmbeddingBytes, m.HeadBytes)
	}
	return m.EmbeddingBytes + m.HeadBytes
}

// Goal is what a model's layout is to reach.
type Goal struct {
	// Replicas is how many there are to be; 0: as many as fit.
	Replicas int
	// Stay is whether replicas that run, and can, stay where they are whatever is better: of
	// Replan.
	Stay bool
	// Context is the tokens of a sequence, and Slots how many sequences have that many at a
	// time; at least 1.
	Context, Slots int
	// FirstToken is how long a prompt of Prompt tokens may take, and Token each token of the
	// answer, in an idle replica; 0: as long as it will.
	FirstToken, Token time.Duration
	// Prompt is the tokens of a prompt; 0: the constant Prompt.
	Prompt int
}

// Prompt is the default of Goal.Prompt, in tokens.
const Prompt = 512

// Request is a model with its goal.
type Request struct {
	Model Model
	Goal  Goal
}

// Node is a node with its devices, which are equal. Each serves one stage at most: two
// stages on one would share its speed, and gain nothing over one with more sequences.
type Node struct {
	// Name of the node.
	Name string
	// Devices is how many there are; 0: 1.
	Devices int
	// Memory is what a device has for a stage, in bytes.
	Memory uint64
	// Decode is a device's speed in bytes of weights per second: tokens per second times
	// the model's bytes. Prefill is the same for prompts. 0: not measured; it counts as
	// the median of those measured.
	Decode, Prefill float64
	// Between links the node's devices. Its zero value is no cost.
	Between Link
	// Domain is what fails together, such as a rack; empty: the node alone.
	Domain string
}

// Link is what was measured between two nodes, or devices.
type Link struct {
	// Bandwidth in bytes per second; 0: without a bound.
	Bandwidth float64
	// Latency is how long a byte takes in one direction.
	Latency time.Duration
}

// Fleet is what models can lie on.
type Fleet struct {
	// Nodes have different names.
	Nodes []Node
	// Links are those measured, by the names of the two nodes in either order; Link is any other.
	Links map[[2]string]Link
	Link  Link
}

// Layout is how one model lies on the nodes.
type Layout struct {
	// Model is the model's name.
	Model string
	// Replicas are those that have a place.
	Replicas []Replica
	// Why is the reason, for a person.
	Why string
	// Missing is what it takes to reach the goal; empty: it is reached.
	Missing string
}

// Decode is what all replicas generate together, in tokens per second as predicted.
func (l Layout) Decode() float64 {
	sum := 0.0
	for _, r := range l.Replicas {
		sum += r.Decode
	}
	return sum
}

// Replica is one copy of a model.
type Replica struct {
	// Stages have its layers in order, the first the embedding, too.
	Stages []Stage
	// TensorParallel is on how many devices each stage lies.
	TensorParallel int
	// Decode is what it generates at most, in tokens per second as predicted. Token is how long
	// a token takes in an idle replica, FirstToken the prompt of the goal.
	Decode            float64
	Token, FirstToken time.Duration
}

// Stage is a node's part of a replica.
type Stage struct {
	// Node is its name.
	Node string
	// Layers is how many of the model's it has.
	Layers int
}

// Make lays all models out, the largest first, and returns their layouts in the order of
// the requests. A model that is to have as many replicas as fit gets one before others
// get a second, and then its part of what is left.
func Make(fleet Fleet, requests []Request) []Layout {
	return newField(fleet).layOut(requests, nil)
}
