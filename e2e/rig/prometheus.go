package rig

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// prometheus is the folder of set-up's Prometheus in the cache.
const prometheus = "prometheus-*"

// Prometheus is a Prometheus server that a test started.
type Prometheus struct {
	*Process
	Addr string
}

// StartPrometheus starts set-up's Prometheus with a configuration file; it ends with the
// test, and keeps its data in a folder of the test.
func StartPrometheus(t testing.TB, config string) *Prometheus {
	t.Helper()
	addr := MustAddresses(t, 1)[0]
	cmd := exec.Command(MustCached(t, filepath.Join(prometheus, "prometheus")), "--config.file", config,
		"--storage.tsdb.path", t.TempDir(), "--web.listen-address", addr, "--log.level", "warn")
	p := &Prometheus{Process: Start(t, "prometheus", cmd), Addr: addr}
	Wait(t, BackLimit, "Prometheus serves", func() error {
		_, err := Get("http://" + addr + "/-/ready")
		return err
	})
	return p
}

// Promtool runs set-up's promtool on what it reads from stdin, and returns what it prints.
// The error is there if it found faults.
func Promtool(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(MustCached(t, filepath.Join(prometheus, "promtool")), args...)
	cmd.Stdin = strings.NewReader(stdin)
	printed, err := cmd.CombinedOutput()
	return string(printed), err
}

// Sample is one series of an answer, with its value now.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query returns the series of an instant query, in Prometheus's order.
func (p *Prometheus) Query(query string) ([]Sample, error) {
	type series struct {
		Metric map[string]string
		Value  [2]any
	}
	found, err := seriesOf[series](p, "query", url.Values{"query": {query}})
	if err != nil {
		return nil, err
	}
	var all []Sample
	for _, r := range found {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: value %q: %w", query, r.Value, err)
		}
		all = append(all, Sample{r.Metric, v})
	}
	return all, nil
}

// EverHadData returns whether a query had a value, other than NaN, at some second between
// two times.
func (p *Prometheus) EverHadData(query string, from, to time.Time) (bool, error) {
	type series struct{ Values [][2]any }
	found, err := seriesOf[series](p, "query_range", url.Values{
		"query": {query}, "step": {"1"},
		"start": {strconv.FormatInt(from.Unix(), 10)}, "end": {strconv.FormatInt(to.Unix(), 10)},
	})
	if err != nil {
		return false, err
	}
	for _, r := range found {
		for _, v := range r.Values {
			if v[1] != "NaN" {
				return true, nil
			}
		}
	}
	return false, nil
}

// seriesOf asks an endpoint of the API for the series of a query.
func seriesOf[S any](p *Prometheus, endpoint string, asked url.Values) ([]S, error) {
	page, err := Get("http://" + p.Addr + "/api/v1/" + endpoint + "?" + asked.Encode())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asked.Get("query"), err)
	}
	var answer struct {
		Data struct{ Result []S }
	}
	if err := json.Unmarshal(page, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w: %.300s", asked.Get("query"), err, page)
	}
	return answer.Data.Result, nil
}
