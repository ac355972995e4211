package status

import (
	"fmt"
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

// Whether a model is loaded on a node.
const (
	loaded     = "loaded"
	asleep     = "asleep"
	beingMade  = "loading"
	failedLoad = "failed"
)

// loading says whether an engine has its model loaded; empty: it has none, or leaves.
func loading(e *enginepb.Status) string {
	l := e.GetLoad()
	switch e.GetState() {
	case enginepb.State_READY:
		switch {
		case l.GetWake() == nil:
			return loaded
		case l.GetWaiting() > 0:
			return beingMade
		}
		return asleep
	case enginepb.State_STARTING, enginepb.State_WARMING:
		return beingMade
	case enginepb.State_BROKEN:
		return failedLoad
	}
	return ""
}

// unloaded says for a person that a model is not loaded, and how long a request would wait.
func unloaded(state string, wake time.Duration) string {
	if state == beingMade {
		return "being loaded, as somebody has asked for it"
	}
	text := "not loaded: nobody has asked for it lately"
	if wake > time.Millisecond { // less stands for: it was not measured yet
		text += fmt.Sprintf("; the next request waits about %s", max(time.Second, wake.Round(time.Second)))
	}
	return text
}
