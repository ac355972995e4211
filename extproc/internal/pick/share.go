package pick

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// shareEvery is the least time that a share is of: scrapes in between get the last one.
const shareEvery = 5 * time.Second

// shares is by model the share of the requests since the scrape before that went to
// one endpoint, of the one that got most. Endpoints of several models count all of
// theirs: it reports whether one is overrun, by whom does not matter.
type shares struct {
	// Constant.
	picker *Picker
	desc   *prometheus.Desc

	// mu guards the fields below.
	mu     sync.Mutex
	at     time.Time
	picks  map[*Live]uint64
	shares map[string]float64 // by model
}

func newShares(p *Picker) *shares {
	return &shares{picker: p, desc: prometheus.NewDesc("millrace_extproc_top_endpoint_share",
		"Share of the requests to a model's endpoints since the last scrape that was sent to the one that got most, requests for other models there included.", []string{"model"}, nil)}
}

// Describe is a Collector's.
func (s *shares) Describe(ch chan<- *prometheus.Desc) { ch <- s.desc }

// Collect is a Collector's.
func (s *shares) Collect(ch chan<- prometheus.Metric) {
	t := s.picker.Table()
	if t == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.at) >= shareEvery {
		s.countLocked(t)
		s.at = now
	}
	for model := range t.Models {
		ch <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, s.shares[model], model)
	}
}

func (s *shares) countLocked(t *Table) {
	picks := map[*Live]uint64{}
	s.shares = map[string]float64{}
	for name, m := range t.Models {
		var sum, top uint64
		for _, e := range m.Endpoints {
			n := e.picks.Load()
			picks[e.Live] = n
			since := n - s.picks[e.Live]
			sum += since
			top = max(top, since)
		}
		if sum > 0 {
			s.shares[name] = float64(top) / float64(sum)
		}
	}
	s.picks = picks
}
