package snapshot

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What becomes of an answer's state.
const (
	savedOK     = "saved"
	savedCheap  = "cheap"  // it is as fast computed again
	savedBusy   = "busy"   // too many others waited
	savedGone   = "gone"   // the backend had it no more
	savedFailed = "failed" // the disk, or the backend
)

// What a restored one came from.
const (
	fromHere = "here"
	fromPeer = "peer"
)

// Why one that was there was not restored.
const (
	ignoredTorn     = "torn"
	ignoredMismatch = "mismatch"
	ignoredFailed   = "failed" // the backend, or the disk
)

// What becomes of a copy for another engine.
const (
	copiedOK     = "copied"
	copiedNobody = "nobody" // wants it
	copiedFailed = "failed"
)

// phases are what takes time.
const (
	phaseStall   = "stall"
	phaseEncode  = "encode"
	phaseCopy    = "copy"
	phaseFetch   = "fetch"
	phaseRestore = "restore"
)

// Metrics count what becomes of snapshots.
type Metrics struct {
	saved, restored, ignored, copied *prometheus.CounterVec
	received, tokens, sent           prometheus.Counter
	seconds                          *prometheus.HistogramVec

	// service is whose they are. Atomic.
	service atomic.Pointer[Service]
}

// NewMetrics registers the metrics of a folder.
func NewMetrics(reg prometheus.Registerer, f *Folder) *Metrics {
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_engine_snapshots_" + name + "_total", Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v)
		}
		reg.MustRegister(c)
		return c
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_engine_snapshot" + name + "_total", Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &Metrics{
		saved: vec("saved", "Answers whose KV state was to be saved, by what became of it: saved, cheap to compute again, busy for others, gone from the backend, failed.",
			"outcome", savedOK, savedCheap, savedBusy, savedGone, savedFailed),
		restored: vec("restored", "KV states that were restored before a prompt, by where they were: here or at a peer.", "from", fromHere, fromPeer),
		ignored: vec("ignored", "Snapshots that were not restored, by why: torn or forged, of another model, backend or build, failed.",
			"reason", ignoredTorn, ignoredMismatch, ignoredFailed),
		copied:   vec("copied", "Snapshots of which another engine was to have a copy, by what became of that.", "outcome", copiedOK, copiedNobody, copiedFailed),
		received: counter("s_received", "Snapshots of other engines that were kept here."),
		tokens:   counter("_restored_tokens", "Tokens of restored states that their prompts began with."),
		sent:     counter("_sent_bytes", "Bytes of snapshots that were sent to other engines."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_engine_snapshot_seconds", Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
			Help: "Time that snapshots take: stall of the backend while it saves, encode, copy to a peer, fetch from one, restore.",
		}, []string{"phase"}),
	}
	for _, p := range []string{phaseStall, phaseEncode, phaseCopy, phaseFetch, phaseRestore} {
		m.seconds.WithLabelValues(p)
	}
	reg.MustRegister(m.seconds,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_engine_snapshots_settling", Help: "1 while answers are being saved or copied, which a drain waits for."}, func() float64 {
			if s := m.service.Load(); s != nil && s.Settling() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_engine_snapshot_bytes", Help: "Bytes of the snapshots in the folder."}, func() float64 {
			_, n := f.Size()
			return float64(n)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_engine_snapshots", Help: "Snapshots in the folder."}, func() float64 {
			n, _ := f.Size()
			return float64(n)
		}))
	return m
}

func (m *Metrics) took(phase string, began time.Time) time.Duration {
	d := time.Since(began)
	m.seconds.WithLabelValues(phase).Observe(d.Seconds())
	return d
}
