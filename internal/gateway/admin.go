package gateway

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Active is what an Envoy is at work on, its own admin port apart.
type Active struct {
	Requests, Connections int
}

// InFlight asks the Envoy with that admin port what it is at work on.
func InFlight(ctx context.Context, admin string) (Active, error) {
	var a Active
	err := Admin(ctx, http.MethodGet, admin, "/stats?filter=downstream_(rq|cx)_active$", func(line string) {
		a.Requests += gauge(line, ".downstream_rq_active")
		a.Connections += gauge(line, ".downstream_cx_active")
	})
	return a, err
}

// gauge returns the value of a line "http.NAME.downstream_rq_active: 3", if its name ends
// so, and 0 for those of Envoy's own admin port.
func gauge(line, suffix string) int {
	name, value, ok := strings.Cut(line, ": ")
	if !ok || !strings.HasPrefix(name, "http.") || strings.HasPrefix(name, "http.admin.") || !strings.HasSuffix(name, suffix) {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil {
		return 0
	}
	return n
}

// maxLine bounds a line of an answer, in bytes.
const maxLine = 1 << 20

// Admin asks Envoy's admin port, and gives each line of the answer to use; nil: nobody
// reads it.
func Admin(ctx context.Context, method, addr, path string, use func(string)) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	if use == nil {
		return nil
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		use(lines.Text())
	}
	return lines.Err()
}
