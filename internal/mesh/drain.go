package mesh

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// drainWait is how long requests in flight may run after the stop was asked for.
const drainWait = 3 * time.Second

// drain closes Envoy's listener and waits for the requests in flight. Nothing
// depends on it: an Envoy that can't be asked is just stopped.
func (m *mesh) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	if err := admin(ctx, http.MethodPost, m.plan.Admin, "/drain_listeners", nil); err != nil {
		return
	}
	for {
		active := 0
		err := admin(ctx, http.MethodGet, m.plan.Admin, "/stats?filter=downstream_rq_active", func(line string) { active += gauge(line) })
		if err != nil || active == 0 || !sleep(ctx, 50*time.Millisecond) {
			return
		}
	}
}

// gauge returns the value of a line "http.NAME.downstream_rq_active: 3", and 0
// for those of Envoy's own admin port.
func gauge(line string) int {
	name, value, ok := strings.Cut(line, ": ")
	if !ok || !strings.HasPrefix(name, "http.") || strings.HasPrefix(name, "http.admin.") {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil {
		return 0
	}
	return n
}

// admin asks Envoy's admin port and gives each line of the answer to use.
func admin(ctx context.Context, method, addr, path string, use func(string)) error {
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
	for lines := bufio.NewScanner(resp.Body); use != nil && lines.Scan(); {
		use(lines.Text())
	}
	return nil
}
