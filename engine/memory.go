package main

import (
	"millrace.dev/millrace/engine/internal/api"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/program"
)

// memory returns what engine itself may take, beside its backend and shard, which share its
// container and have bounds of their own: manifests/memory.md.
func memory() []program.Part {
	_, most, _ := blocks.Memory()
	return []program.Part{
		{Name: "program", Most: 64 << 20},
		{Name: "bodies", Most: 3 * api.Bodies}, // as they came, decoded, and as the backend gets them
		{Name: "answers", Most: 128 << 20},     // that are put together from streams
		{Name: "blocks", Most: most, Used: func() int64 {
			taken, _, _ := blocks.Memory()
			return taken
		}},
	}
}
