package fleet

import (
	"context"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"

	"millrace.dev/millrace/internal/scrape"
)

func TestCheckOnline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	write(t, path, `
endpoints:
  - {address: "gpu:80", models: [m], type: vllm}
  - {address: "gone:80", models: [m]}
  - {address: "10.0.0.1:80", models: [m], type: vllm}
  - {address: "10.0.0.2:80", models: [m], type: vllm}
`)
	w := &world{
		pages: map[string]string{
			"http://10.0.0.1:80/metrics":   "vllm:num_requests_running 0\n",
			"http://10.0.0.1:80/v1/models": `{"data":[{"id":"M"}]}`,
			"http://10.0.0.3:80/health":    "ok",
		},
		errs: map[string]error{"10.0.0.2:80": scrape.ErrGone}, asked: map[string]int{},
		dns: map[string][]netip.Addr{"gpu": {netip.MustParseAddr("10.0.0.3")}},
	}
	get := func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error) { return w.get(ctx, r, buf) }
	const want = `host name gone: no such host
endpoint 10.0.0.1:80: it lists other models: not "m", but "M"
endpoint 10.0.0.2:80: nobody answers
endpoint 10.0.0.3:80: metrics at http://10.0.0.3:80/metrics: status 404`
	if err := CheckOnline(path, w.lookup, get); err == nil || err.Error() != want {
		t.Errorf("CheckOnline() = %v, want %s", err, want)
	}
}
