package page

import "time"

// Kind is what an Event is about.
type Kind string

// Kinds of events.
const (
	Started    Kind = "started"    // xds was started
	Joined     Kind = "joined"     // a node or an endpoint is new
	Left       Kind = "left"       // one is not there any more
	Ejected    Kind = "ejected"    // a replica takes no requests any more
	Reinstated Kind = "reinstated" // it takes them again, or for the first time
	Suspected  Kind = "suspected"  // it gets requests only if nobody else is ready
	Replanned  Kind = "replanned"  // a replica lies on other nodes, or has no place
	Scaled     Kind = "scaled"     // a model is to have another number of replicas
	Configured Kind = "config"     // the configuration has changed, or was refused
	Drain      Kind = "drain"      // a node is drained, or taken back
	Slowed     Kind = "slowed"     // a GPU is slowed down or lost, or is well again
	Outage     Kind = "outage"     // nobody serves a model, or somebody does again
)

// Level is how bad an event is.
type Level string

// Levels of events.
const (
	Good Level = "good"
	Info Level = "info"
	Bad  Level = "bad"
)

// Event is one thing that has happened to the fleet. It is the data of the event "event",
// and an item of /page/events.json. It says what xds saw: what came and went between two
// views is not there.
type Event struct {
	// Seq numbers the events of this start of xds, from 1.
	Seq   uint64    `json:"seq"`
	At    time.Time `json:"at"`
	Kind  Kind      `json:"kind"`
	Level Level     `json:"level"`
	// Subject is the name of the node, replica, model or object.
	Subject string `json:"subject"`
	// Text is what has happened, and why, for a person.
	Text string `json:"text"`
}
