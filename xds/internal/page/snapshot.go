package page

import "time"

// Health is how a mesh is, in one word.
type Health string

// Healths of a mesh.
const (
	// Well: nothing is wrong.
	Well Health = "well"
	// Degraded: something is wrong, and every model is served.
	Degraded Health = "degraded"
	// Down: a model that should be served is not.
	Down Health = "down"
	// Empty: no model is configured, or no node has reported.
	Empty Health = "empty"
)

// Snapshot is the mesh at one moment, as the page draws it. It is the data of the event
// "fleet", and of /page/fleet.json. Lists are never null. Not changed once it is made.
type Snapshot struct {
	Health Health `json:"health"`
	// Headline is what is to be read first, in one sentence.
	Headline string `json:"headline"`
	// Problems are what is wrong, the worst first.
	Problems []Problem `json:"problems"`
	Models   []Model   `json:"models"`
	Nodes    []Node    `json:"nodes"`
	// Version of the configuration in force; 0: none yet. Objects has what it consists of.
	Version uint64   `json:"config_version"`
	Objects []Object `json:"objects"`
	// Clients are the Envoys and extprocs that are connected.
	Clients uint32 `json:"ads_clients"`
	// Chat is whether the page's chat has somebody to talk to.
	Chat bool `json:"chat"`
	// Hidden is how many replicas and nodes there are beyond those that are listed.
	Hidden int `json:"hidden"`
}

// Problem is something that is wrong, and the way out.
type Problem struct {
	// Code is for programs, for example "model-down".
	Code string `json:"code"`
	Text string `json:"text"`
	// Next is what a person can do; empty: nothing, it mends itself.
	Next string `json:"next"`
	// Grave is whether requests fail by it.
	Grave bool `json:"grave"`
}

// Model is a model that is configured, or that some endpoint serves.
type Model struct {
	Name string `json:"name"`
	// Ready of Desired replicas take requests.
	Ready   int `json:"ready"`
	Desired int `json:"desired"`
	// Layout is how it lies on nodes, and why, for a person; empty: as configured.
	Layout   string    `json:"layout"`
	Scaling  *Scaling  `json:"scaling"`
	Replicas []Replica `json:"replicas"`
}

// Scaling is how the number of a model's replicas follows demand.
type Scaling struct {
	// Mode is "auto" or "recommend", Phase one word: "Steady", "Growing", "Shrinking",
	// "Asleep" or "Limited"; Reason is why.
	Mode   string `json:"mode"`
	Phase  string `json:"phase"`
	Reason string `json:"reason"`
	// Desired by demand, of Min to Max; Current is how many there are.
	Desired uint32 `json:"desired"`
	Current uint32 `json:"current"`
	Min     uint32 `json:"min"`
	Max     uint32 `json:"max"`
	// Arrivals are requests per second, Queued those that wait in extprocs.
	Arrivals float64 `json:"arrivals"`
	Queued   uint32  `json:"queued"`
	// Cost is spent per hour, Budget what may be; 0: no bound.
	Cost   float64 `json:"cost"`
	Budget float64 `json:"budget"`
}

// State is how a replica or a node is.
type State string

// States of replicas and nodes.
const (
	// Ready takes requests.
	Ready State = "ready"
	// Suspect gets requests only if nobody else is ready.
	Suspect State = "suspect"
	// NotReady takes none.
	NotReady State = "not-ready"
	// Asleep is not loaded, and nothing is wrong with that.
	Asleep State = "asleep"
	// Unplaced has no place on nodes.
	Unplaced State = "unplaced"
	// Draining and Drained are nodes that are emptied on purpose.
	Draining State = "draining"
	Drained  State = "drained"
	// Free is a node that could take a replica.
	Free State = "free"
)

// Replica is one replica of a model, or an endpoint that is run elsewhere.
type Replica struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason is why it is not ready; empty: it is, or nobody knows.
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Address of its API; empty: not known.
	Address string `json:"address"`
	// Weight in Envoy's fallback policy, Share of the model's sum of them, 0 to 1.
	Weight uint32  `json:"weight"`
	Share  float64 `json:"share"`
	// Running requests and Waiting ones, at its engine; Slots is how many may run at a time.
	Running uint32 `json:"running"`
	Waiting uint32 `json:"waiting"`
	Slots   uint32 `json:"slots"`
	// Limit is why Slots is not more or less, where it follows a goal.
	Limit string `json:"limit"`
	// KVUsed of KVTotal tokens are in use in the KV cache; Cached are tokens that prompts
	// can find there.
	KVUsed  uint64 `json:"kv_used_tokens"`
	KVTotal uint64 `json:"kv_total_tokens"`
	Cached  uint64 `json:"cached_tokens"`
	// Prefill and Decode are measured tokens per second of one sequence; 0: not measured.
	Prefill float64 `json:"prefill"`
	Decode  float64 `json:"decode"`
	// Shards are its parts on nodes, the head's first; empty: it is run elsewhere.
	Shards []Shard `json:"shards"`
	// Source is the object that names it if it is run elsewhere, Engine its type.
	Source string `json:"source"`
	Engine string `json:"engine"`
}

// Shard is one node's part of a replica.
type Shard struct {
	Node string `json:"node"`
	// Share of the layers, 0 to 1.
	Share float64 `json:"share"`
}

// Node is a machine, as its nodeagent reports it.
type Node struct {
	Name   string `json:"name"`
	Zone   string `json:"zone"`
	State  State  `json:"state"`
	Reason string `json:"reason"`
	// Since is when it came to State.
	Since time.Time `json:"since"`
	// Replica of which it has part Stage of Stages, from 1; empty: of none.
	Replica string `json:"replica"`
	Stage   int    `json:"stage"`
	Stages  int    `json:"stages"`
	// Silent is since when it has not reported; zero: it reports.
	Silent time.Time `json:"silent"`
	// CPU is the share of CPUs in use, 0 to 1. Memory is in bytes, the host's.
	CPU         float64 `json:"cpu"`
	CPUs        uint32  `json:"cpus"`
	MemoryUsed  uint64  `json:"memory_used"`
	MemoryTotal uint64  `json:"memory_total"`
	GPUs        []GPU   `json:"gpus"`
	// Unread is what of the telemetry could not be read, and why.
	Unread string `json:"unread"`
}

// GPU is one GPU. Figures that its driver does not give are in Missing, and 0.
type GPU struct {
	Name string `json:"name"`
	// Utilization and Clock, the present clock by its maximum, are 0 to 1.
	Utilization float64 `json:"utilization"`
	Clock       float64 `json:"clock"`
	MemoryUsed  uint64  `json:"memory_used"`
	MemoryTotal uint64  `json:"memory_total"`
	// Celsius and Watts.
	Celsius float64 `json:"celsius"`
	Watts   float64 `json:"watts"`
	// Slowed is what lowers its clock, in words; empty: nothing that matters.
	Slowed  []string `json:"slowed"`
	Lost    bool     `json:"lost"`
	Missing []string `json:"missing"`
}

// Object is one object of the configuration.
type Object struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Generation of its content in force; 0: none is.
	Generation int64 `json:"generation"`
	// Refused is why newer content is not in force; empty: it is.
	Refused string `json:"refused"`
}
