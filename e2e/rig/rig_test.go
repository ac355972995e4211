package rig

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve starts a server with one answer to all requests.
func serve(t *testing.T, status int, body string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		if err := Poll(time.Minute, func() error {
			if n++; n < 5 {
				return errors.New("not yet")
			}
			return nil
		}); err != nil || n != 5 {
			t.Errorf("Poll() = %v after %d calls, want nil after 5", err, n)
		}
		begin := time.Now()
		err := Poll(time.Minute, func() error { return errors.New("the door is shut") })
		if took := time.Since(begin); took < time.Minute || took > time.Minute+time.Second || !strings.Contains(err.Error(), "the door is shut") {
			t.Errorf("Poll() = %v after %v, want the last answer after a minute", err, took)
		}
		begin = time.Now()
		if err := Poll(time.Minute, func() error { return fmt.Errorf("wrapped: %w", Final(io.EOF)) }); !errors.Is(err, io.EOF) || time.Since(begin) > 0 {
			t.Errorf("Poll() = %v after %v, want the final error at once", err, time.Since(begin))
		}
	})
}

func TestMetrics(t *testing.T) {
	url := serve(t, 200, "# TYPE x counter\nx 3\ny_total{a=\"b c\",d=\"e\"} 1.5\ny_total{a=\"f\",d=\"e\"} 2\n")
	admin := strings.TrimPrefix(url, "http://")
	got, err := Metrics(admin)
	want := map[string]float64{"x": 3, `y_total{a="b c",d="e"}`: 1.5, `y_total{a="f",d="e"}`: 2}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Metrics() = %v (-want +got):\n%s", err, diff)
	}
	if v, err := SumMetric(admin, "y_total"); v != 3.5 || err != nil {
		t.Errorf("SumMetric() = %v, %v, want 3.5", v, err)
	}
	if _, err := Metric(admin, "z"); err == nil {
		t.Error("Metric() of a series that is not there: no error")
	}
}

func TestStream(t *testing.T) {
	const first, last = `data: {"choices":[{"delta":{"content":"He"}}]}` + "\n\n", `data: {"choices":[{"delta":{"content":"y"}}],"usage":{"prompt_tokens":7}}` + "\n\n"
	tests := []struct {
		name, body string
		status     int
		want       Streamed
		wantErr    string
	}{
		{"whole", first + last + "data: [DONE]\n\n", 200, Streamed{Text: "Hey", Chunks: 2, Usage: Usage{Prompt: 7}, Done: true}, ""},
		{"a response", `data: {"type":"response.created","response":{}}` + "\n\n" + `data: {"type":"response.output_text.delta","delta":"Hey"}` + "\n\n" +
			`data: {"type":"response.completed","response":{}}` + "\n\n", 200, Streamed{Text: "Hey", Chunks: 3, Done: true}, ""},
		{"cut", first, 200, Streamed{Text: "He", Chunks: 1}, "without [DONE]"},
		{"an error", first + `data: {"error":{"message":"x"}}` + "\n\n", 200, Streamed{Text: "He", Chunks: 1}, "error event"},
		{"refused", "no", 503, Streamed{}, "status 503: no"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Stream(t.Context(), serve(t, tt.status, tt.body), map[string]any{"stream": true}, nil)
			got.Header, got.First, got.Took = nil, 0, 0
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Stream() (-want +got):\n%s", diff)
			}
			if fmt.Sprint(err) == "<nil>" != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("Stream() = %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// TestLoadCountsFailures holds that nothing but a whole answer counts as one.
func TestLoadCountsFailures(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		status     int
		fails      bool
	}{
		{"an answer", `{"choices":[{"message":{"content":"x"}}]}`, 200, false},
		{"no choice", `{"choices":[]}`, 200, true},
		{"cut JSON", `{"choices":[{"mess`, 200, true},
		{"an error", `{"error":{}}`, 503, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := StartLoad(t, serve(t, tt.status, tt.body), 2, ShortQuestions)
			l.More(t, 4)
			l.Stop()
			want := 0
			if tt.fails {
				want = int(l.Done())
			}
			if got := len(l.Failed()); got != want || l.Done() < 4 {
				t.Errorf("%d of %d requests failed, want %d", got, l.Done(), want)
			}
		})
	}
}

func TestSeededQuestions(t *testing.T) {
	a, b, c := SeededQuestions(1, 9), SeededQuestions(1, 9), SeededQuestions(2, 9)
	differ := 0
	for n := range 20 {
		if a(1, n) == nil || !cmp.Equal(a(1, n), b(1, n)) {
			t.Errorf("request %d: the same seed gives another one", n)
		}
		if !cmp.Equal(a(1, n), c(1, n)) {
			differ++
		}
	}
	if differ == 0 {
		t.Error("another seed gives the same requests")
	}
}
