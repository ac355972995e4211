package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/config"
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
	var base, adapters []string
	for _, m := range listed(list) {
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

// listedModel is an entry of the answer to GET /v1/models.
type listedModel struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
}

func listed(list []byte) []listedModel {
	var answer struct {
		Data []listedModel `json:"data"`
	}
	if json.Unmarshal(list, &answer) != nil {
		return nil
	}
	return answer.Data
}

// ErrModels says that an engine does not serve what its entry names.
var ErrModels = errors.New("it lists other models")

// Ask asks an endpoint once for all that a Prober asks it: it returns that it does not
// answer, shows no metrics, or does not list its entry's models; nil: all is well. get is
// as for Discover.
func Ask(ctx context.Context, get func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error), e Endpoint) error {
	t, err := newTarget(e, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer t.close()
	f, buf := t.probe(ctx, get, question{health: true, page: t.typ != nil}, nil)
	if f.health != nil {
		return f.health
	}
	t.askModels(ctx, get, &f, buf)
	if f.metrics != nil {
		f.metrics = fmt.Errorf("metrics at %s: %w", e.Metrics, f.metrics)
	}
	return errors.Join(f.metrics, f.models)
}

// unlisted returns which models of its entry an endpoint does not list in its answer to
// GET /v1/models; nil: it lists them all, or says nothing that we understand. A
// llama-server with one model takes any name for it.
func (e Endpoint) unlisted(list []byte) error {
	models := listed(list)
	if len(models) == 0 || e.Type == config.TypeLlamaCpp && len(models) == 1 {
		return nil
	}
	var missing, others []string
	for _, name := range e.Models {
		if !slices.ContainsFunc(models, func(m listedModel) bool { return m.ID == name }) {
			missing = append(missing, strconv.Quote(name))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, m := range models {
		if !slices.Contains(e.Models, m.ID) && len(others) < shownModels {
			others = append(others, fmt.Sprintf("%.96q", m.ID))
		}
	}
	more := ""
	if n := len(models) - len(others) - (len(e.Models) - len(missing)); n > 0 && len(others) == shownModels {
		more = fmt.Sprintf(" and %d more", n)
	}
	if len(others) == 0 {
		return fmt.Errorf("%w: not %s", ErrModels, strings.Join(missing, ", "))
	}
	return fmt.Errorf("%w: not %s, but %s%s", ErrModels, strings.Join(missing, ", "), strings.Join(others, ", "), more)
}

// shownModels is how many models a fault names.
const shownModels = 4
