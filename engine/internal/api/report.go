package api

import (
	"net/http"
	"strconv"
	"time"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/wire"
)

// Headers of the contract, as Go keeps them in a map.
var (
	headerNode     = http.CanonicalHeaderKey(wire.NodeHeader)
	headerReplica  = http.CanonicalHeaderKey(wire.ReplicaHeader)
	headerUsage    = http.CanonicalHeaderKey(wire.UsageHeader)
	headerResponse = http.CanonicalHeaderKey(wire.ResponseIDHeader)
	headerLoad     = http.CanonicalHeaderKey(wire.LoadHeader)
	headerRequest  = http.CanonicalHeaderKey(wire.RequestHeader)
)

// requestNumber is the number that extproc gave to a request; 0: none.
func requestNumber(r *http.Request) uint64 {
	values := r.Header[headerRequest]
	if len(values) != 1 {
		return 0
	}
	n, err := strconv.ParseUint(values[0], 16, 64)
	if err != nil {
		return 0
	}
	return n
}

// priorityOf is the priority of a request, as extproc says it; standard where it does not.
func priorityOf(r *http.Request) admit.Priority {
	switch r.Header.Get(wire.PriorityHeader) {
	case wire.Critical:
		return admit.Critical
	case wire.Sheddable:
		return admit.Sheddable
	}
	return admit.Standard
}

// formatUsage writes what a request cost, in the form of the header.
func formatUsage(u backend.Usage) string {
	b := make([]byte, 0, 96)
	b = strconv.AppendUint(append(b, wire.UsagePrompt+"="...), u.Prompt, 10)
	b = strconv.AppendUint(append(b, ","+wire.UsageCached+"="...), u.Cached, 10)
	b = strconv.AppendUint(append(b, ","+wire.UsageCompletion+"="...), u.Completion, 10)
	b = appendMS(append(b, ","+wire.UsagePrefill+"="...), u.Prefill)
	b = appendMS(append(b, ","+wire.UsageDecode+"="...), u.Decode)
	return string(b)
}

func appendMS(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d)/float64(time.Millisecond), 'f', 1, 64)
}

// formatLoad writes an ORCA load report in its text form.
func formatLoad(l admit.Load, kv, rate float64) string {
	use := 0.0
	if l.Slots > 0 {
		use = float64(l.Running+l.Waiting) / float64(l.Slots)
	}
	b := make([]byte, 0, 192)
	b = strconv.AppendInt(append(b, wire.LoadText+wire.LoadRunning+"="...), int64(l.Running), 10)
	b = strconv.AppendInt(append(b, ","+wire.LoadWaiting+"="...), int64(l.Waiting), 10)
	b = strconv.AppendInt(append(b, ","+wire.LoadTokensInFlight+"="...), l.Tokens, 10)
	b = appendShort(append(b, ","+wire.LoadKV+"="...), kv)
	b = appendShort(append(b, ","+wire.LoadUtilization+"="...), use)
	b = appendShort(append(b, ","+wire.LoadRate+"="...), max(rate, minRate))
	return string(b)
}

// minRate is reported instead of no requests at all: Envoy ignores a report
// without a rate.
const minRate = 0.001

func appendShort(b []byte, v float64) []byte { return strconv.AppendFloat(b, v, 'g', 4, 64) }
