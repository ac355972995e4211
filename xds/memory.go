package main

import (
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/xds/internal/fleet"
)

// blockShare is what of the memory that is given is for what engines have cached.
const blockShare = 0.25

// memory returns what xds may take: manifests/memory.md.
func memory() []program.Part {
	_, most, _ := blocks.Memory()
	return []program.Part{
		{Name: "program", Most: 96 << 20}, // code, objects, resources, streams of clients, what the page remembers
		{Name: "nodes", Most: fleet.MostNodes * 12 << 10},
		{Name: "blocks", Most: most, Used: func() int64 {
			taken, _, _ := blocks.Memory()
			return taken
		}},
		{Name: "events", Most: kvevents.Memory},
	}
}
