package probe

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/secret"
)

// Discovered is what an endpoint of which only the address is known says that it is.
type Discovered struct {
	// Type is whose metrics it shows, Metrics where; empty: it shows none that we know.
	Type    string
	Metrics secret.URL
	// Models are the ids that it says it serves, the base model first; nil: it does not say.
	Models []string
}

// Bounds of what an endpoint is believed to serve.
const (
	maxModels    = 256
	maxModelName = 96
)

// Discover asks an endpoint what it is. pages are where its metrics may be; none: where
// each type that we know has them. The error is that nobody answers there: it may be asked
// again. get is nil, or what Options.Get is.
func Discover(ctx context.Context, get func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error), address string, pages []string) (Discovered, error) {
	var d Discovered
	var buf []byte
	if len(pages) == 0 {
		pages = scrape.Pages(address)
	}
	for _, url := range pages {
		page, err := ask(ctx, get, url, &buf)
		if lost(err) && strings.HasPrefix(url, "http://"+address+"/") {
			break // the others are there, too; it may have models nevertheless
		}
		if t := scrape.TypeOf(page); err == nil && t != nil {
			d.Type, d.Metrics = t.Name(), secret.URL(url)
			break
		}
	}
	list, err := ask(ctx, get, "http://"+address+"/v1/models", &buf)
	if lost(err) && d.Type == "" {
		return Discovered{}, err
	}
	if err == nil {
		d.Models = modelsOf(list)
	}
	return d, nil
}

// ask fetches a page into the buffer.
func ask(ctx context.Context, get func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error), url string, buf *[]byte) ([]byte, error) {
	r, err := scrape.NewRequest(secret.URL(url))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	page, err := get(ctx, r, *buf)
	*buf = page
	return page, err
}

// lost reports whether an error is that nobody answers.
func lost(err error) bool { return errors.Is(err, scrape.ErrSilent) || errors.Is(err, scrape.ErrGone) }

// modelsOf reads the answer to GET /v1/models: models without a parent before those that
// have one, which are adapters. nil: it is something else.
func modelsOf(list []byte) []string {
	var answer struct {
		Data []struct {
			ID     string `json:"id"`
			Parent string `json:"parent"`
		} `json:"data"`
	}
	if json.Unmarshal(list, &answer) != nil {
		return nil
	}
	var base, adapters []string
	for _, m := range answer.Data {
		switch {
		case m.ID == "" || len(m.ID) > maxModelName || slices.Contains(base, m.ID) || slices.Contains(adapters, m.ID):
		case len(base)+len(adapters) == maxModels:
		case m.Parent == "":
			base = append(base, m.ID)
		default:
			adapters = append(adapters, m.ID)
		}
	}
	return append(base, adapters...)
}
