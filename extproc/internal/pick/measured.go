package pick

import (
	"math"
	"time"

	"millrace.dev/millrace/internal/trust"
)

// Measured takes in what the endpoint's engine shows that it has done for everybody
// since it was last scraped: u adds up so many requests (0: not said), on company
// of which it worked at a time. For engines that say nothing of single answers.
func (p *Picker) Measured(m *Model, e *Endpoint, u Usage, requests, company float64, now time.Time) {
	requests = trust.Clamp(requests, 0, math.MaxInt32)
	u = u.believed(0)
	seen := e.learn(u, max(1, company), 0, now.UnixNano())
	e.served.answered(&u)
	if m == nil {
		p.metrics.models.of(e.Base).answered(&u)
		return
	}
	p.metrics.models.of(m.Name).answered(&u)
	pooled := seen.pooled(e.Prior)
	update(&m.speed, &pooled, now.UnixNano())
	mean := Usage{Prompt: u.Prompt, Cached: u.Cached}
	if requests >= 1 {
		mean.Completion = int(float64(u.Completion)/requests + 0.5)
		m.learnMean(float64(u.Prompt) / requests)
	}
	m.learn(mean)
}
