package probe

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/scrape"
)

// metrics of a Prober.
type metrics struct {
	probes  map[string]prometheus.Counter // by what they found
	seconds prometheus.Histogram
}

// What probes find.
const (
	foundMetrics = "metrics" // metrics came
	foundAnswer  = "answer"  // it lives, no metrics came
	foundUnwell  = "unwell"  // it says that it is not well
	foundGone    = "gone"    // nobody is there
	foundSilent  = "silent"  // nothing came in time
)

func newMetrics(program string, reg prometheus.Registerer) *metrics {
	probes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_" + program + "_probes_total",
		Help: "Probes of endpoints, by what they found.",
	}, []string{"found"})
	m := &metrics{
		probes: map[string]prometheus.Counter{},
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_" + program + "_probe_seconds",
			Help:    "Time that a probe of an endpoint took.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2},
		}),
	}
	for _, name := range []string{foundMetrics, foundAnswer, foundUnwell, foundGone, foundSilent} {
		m.probes[name] = probes.WithLabelValues(name)
	}
	reg.MustRegister(probes, m.seconds)
	return m
}

// probed counts a probe.
func (m *metrics) probed(f *finding, took time.Duration) {
	found := foundAnswer
	var status scrape.StatusError
	switch {
	case f.health == nil && f.sample != nil:
		found = foundMetrics
	case silent(f.health):
		found = foundSilent
	case errors.As(f.health, &status):
		found = foundUnwell
	case f.health != nil:
		found = foundGone
	}
	m.probes[found].Inc()
	m.seconds.Observe(took.Seconds())
}

// silent reports whether an endpoint has not answered in time.
func silent(err error) bool { return errors.Is(err, scrape.ErrSilent) }
