package api

import (
	"strconv"
	"time"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/llamacpp"
)

// Headers of the contract.
const (
	headerPromptTokens = "X-Millrace-Prompt-Tokens"
	headerPrefix       = "X-Millrace-Prefix"
	headerNode         = "X-Millrace-Node"
	headerReplica      = "X-Millrace-Replica"
	headerUsage        = "X-Millrace-Usage"
	headerResponse     = "X-Millrace-Response-Id"
	headerLoad         = "Endpoint-Load-Metrics"
)

// formatUsage writes what a request cost, in the form of the header.
func formatUsage(u llamacpp.Usage) string {
	b := make([]byte, 0, 96)
	b = strconv.AppendUint(append(b, "prompt="...), u.Prompt, 10)
	b = strconv.AppendUint(append(b, ",cached="...), u.Cached, 10)
	b = strconv.AppendUint(append(b, ",completion="...), u.Completion, 10)
	b = appendMS(append(b, ",prefill_ms="...), u.Prefill)
	b = appendMS(append(b, ",decode_ms="...), u.Decode)
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
	b = strconv.AppendInt(append(b, "TEXT named_metrics.running="...), int64(l.Running), 10)
	b = strconv.AppendInt(append(b, ",named_metrics.waiting="...), int64(l.Waiting), 10)
	b = strconv.AppendInt(append(b, ",named_metrics.tokens_in_flight="...), l.Tokens, 10)
	b = appendShort(append(b, ",named_metrics.kv_util="...), kv)
	b = appendShort(append(b, ",application_utilization="...), use)
	b = appendShort(append(b, ",rps_fractional="...), max(rate, minRate))
	return string(b)
}

// minRate is reported instead of no requests at all: Envoy ignores a report
// without a rate.
const minRate = 0.001

func appendShort(b []byte, v float64) []byte { return strconv.AppendFloat(b, v, 'g', 4, 64) }
