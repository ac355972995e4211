package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/wire"
)

// maxEvents bounds what xds sends of events, in bytes: 512 of some 4 KB at most.
const maxEvents = 4 << 20

// event is what of an event of xds' page is printed.
type event struct {
	At    time.Time `json:"at"`
	Level string    `json:"level"`
	Text  string    `json:"text"`
}

// signs are the levels, as the page shows them.
var signs = map[string]string{"good": "●", "info": "○", "bad": "▲"}

// Events prints what has happened to the mesh in o.Dir since its xds was started, the newest last,
// as lines or as JSON.
func Events(ctx context.Context, o Options) error {
	s, up, err := state.Read(o.Dir)
	if err == nil && !up {
		err = errDown
	}
	if err != nil {
		return &obs.Hint{Err: fmt.Errorf("events: %w", err), Next: "start a mesh with `" + obs.Command("millrace", "up", "-dir", o.Dir) + "`, or name its folder with -dir"}
	}
	b, err := askEvents(ctx, &s)
	if err != nil {
		return &obs.Hint{Err: fmt.Errorf("events: xds: %w", err), Next: "millrace status shows whether it runs"}
	}
	if o.JSON {
		_, err := fmt.Fprintf(o.Out, "%s\n", b)
		return err
	}
	return printEvents(o.Out, b)
}

// printEvents prints events that are JSON, a line each. What a terminal would obey is escaped.
func printEvents(to io.Writer, b []byte) error {
	var all []event
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("events: xds: %w", err)
	}
	for _, e := range all {
		text := strconv.Quote(e.Text)
		text = strings.ReplaceAll(text[1:len(text)-1], `\"`, `"`)
		if _, err := fmt.Fprintf(to, "%s  %s  %s\n", e.At.Local().Format(time.DateTime), cmp.Or(signs[e.Level], "○"), text); err != nil {
			return err
		}
	}
	return nil
}

// askEvents returns the events that xds remembers, as JSON.
func askEvents(ctx context.Context, s *state.State) ([]byte, error) {
	p := s.Find("xds")
	if p == nil || p.PID == 0 {
		return nil, errors.New("it does not run")
	}
	ctx, cancel := context.WithTimeout(ctx, xdsWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addrs["metrics"]+"/page/events.json", nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{IdleConnTimeout: wire.ClientIdle}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxEvents))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, b)
	}
	return b, err
}
