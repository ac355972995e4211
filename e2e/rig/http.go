package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// Client sends all requests of this package; tests share its connections.
var Client = &http.Client{Timeout: time.Minute}

// Answer is a response, read whole.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Took   time.Duration
}

// Do sends a request and reads the whole answer.
func Do(req *http.Request) (Answer, error) {
	begin := time.Now()
	resp, err := Client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, b, time.Since(begin)}, err
}

// Send posts the body as it is; header holds pairs of name and value.
func Send(ctx context.Context, url string, body io.Reader, header ...string) (Answer, error) {
	req, err := request(ctx, url, body, header...)
	if err != nil {
		return Answer{}, err
	}
	return Do(req)
}

// request returns a request that posts the body.
func request(ctx context.Context, url string, body io.Reader, header ...string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	if host := req.Header.Get("host"); host != "" {
		req.Host = host // which net/http takes from nowhere else
	}
	return req, nil
}

// post returns a request that posts v as JSON.
func post(ctx context.Context, url string, v any, header ...string) (*http.Request, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return request(ctx, url, bytes.NewReader(b), append([]string{"content-type", "application/json"}, header...)...)
}

// Post sends v as JSON; header holds pairs of name and value.
func Post(ctx context.Context, url string, v any, header ...string) (Answer, error) {
	req, err := post(ctx, url, v, header...)
	if err != nil {
		return Answer{}, err
	}
	return Do(req)
}

// MustPost posts v and fails the test unless the answer is 200.
func MustPost(t testing.TB, url string, v any, header ...string) Answer {
	t.Helper()
	a, err := Post(t.Context(), url, v, header...)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != http.StatusOK {
		t.Fatalf("%s: status %d: %s", url, a.Status, a.Body)
	}
	return a
}

// Get returns the body of a page whose status must be 200.
func Get(url string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	a, err := Do(req)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.300s", url, a.Status, a.Body)
	}
	return a.Body, err
}

// Decode decodes JSON that must be well-formed.
func Decode[T any](t testing.TB, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
	return v
}

// Healthy says why the server at an address doesn't answer /health with 200.
func Healthy(addr string) error {
	_, err := Get("http://" + addr + "/health")
	return err
}

// Ready says which conditions the program with that metrics address has, also those that
// keep it from nothing: what its /readyz lists.
func Ready(admin string) error {
	page, err := Get("http://" + admin + "/readyz")
	if list := strings.TrimSpace(string(page)); err == nil && list != "[]" {
		err = fmt.Errorf("conditions %s", list)
	}
	return err
}

// HasCondition says why the /readyz page of a metrics address does not list a code.
func HasCondition(admin, code string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return err
	}
	a, err := Do(req)
	if err == nil && !strings.Contains(string(a.Body), `"`+code+`"`) {
		err = fmt.Errorf("conditions %s, want %s", a.Body, code)
	}
	return err
}

// Metrics returns all series of a program, by name with labels as the page has them:
// `x_total{a="b"}`.
func Metrics(admin string) (map[string]float64, error) {
	page, err := Get("http://" + admin + "/metrics")
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		all[line[:i]] = v
	}
	return all, nil
}

// Metric returns the value of one series of a program.
func Metric(admin, series string) (float64, error) {
	all, err := Metrics(admin)
	if err != nil {
		return 0, err
	}
	v, ok := all[series]
	if !ok {
		return 0, fmt.Errorf("http://%s/metrics: no series %s", admin, series)
	}
	return v, nil
}

// MustMetric is Metric for tests.
func MustMetric(t testing.TB, admin, series string) float64 {
	t.Helper()
	v, err := Metric(admin, series)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// SumMetric returns the sum of all series of a name, whatever their labels.
func SumMetric(admin, name string) (float64, error) {
	all, err := Metrics(admin)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for series, v := range all {
		if base, _, _ := strings.Cut(series, "{"); base == name {
			sum += v
		}
	}
	return sum, nil
}

// HeaderMap returns Envoy's form of headers, given as pairs of name and value.
func HeaderMap(pairs ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return m
}
