package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/conversation"
	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// continues has a request that continues a response, or is in a conversation, continue nothing:
// what came before is in its input then. It returns the body that says so.
func (c *call) continues(ctx context.Context, body []byte) ([]byte, *apiError) {
	if c.cfg.Conversations == nil || c.op.api != apis.Responses && c.op.api != apis.InputTokens {
		return body, nil
	}
	if c.asked != nil {
		return body, nil // the peer whose client it is has put the history in front, and stores
	}
	tenant, failed := tenantOf(c.r)
	if failed != nil {
		return nil, failed
	}
	fields, turn, wrong := c.cfg.Conversations.Begin(ctx, tenant, c.req.fields, c.op.OnlyCounts())
	if wrong != nil {
		return nil, fromError(*wrong)
	}
	c.req.fields, c.turn = fields, turn
	return backend.Encode(fields), nil
}

// responseID is the id of the response whose answer or stream begins so; "": it is no response.
func (c *call) responseID(first []byte) string {
	switch {
	case !c.op.responses:
		return ""
	case c.turn != nil:
		return c.turn.ID()
	}
	return backend.ResponseID(first)
}

// tenantOf is whose a request is, as extproc says it.
func tenantOf(r *http.Request) (string, *apiError) {
	tenant := r.Header.Get(wire.TenantHeader)
	if !(record.Key{Tenant: tenant, ID: "x"}).Valid() {
		return "", badRequest("", "%s: %.80q; must be a name of at most %d of a-z, 0-9 and -", wire.TenantHeader, tenant, record.MaxTenant)
	}
	return tenant, nil
}

// stored is one request for what is stored.
type stored struct {
	*conversation.Service
	r        *http.Request
	tenant   string
	id, item string
	page     conversation.Page
	body     map[string]json.RawMessage
}

// do answers one.
type do func(context.Context, *stored) ([]byte, *backend.Error)

// pageOf reads which items of a list are asked for.
func (s *stored) pageOf() *apiError {
	q := s.r.URL.Query()
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 100 {
			return badRequest("limit", "limit: %.40q; must be 1 to 100", text)
		}
		s.page.Limit = n
	}
	switch order := q.Get("order"); order {
	case "", "desc":
	case "asc":
		s.page.Ascending = true
	default:
		return badRequest("order", "order: %.40q; must be asc or desc", order)
	}
	s.page.After = q.Get("after")
	if q.Get("stream") == "true" {
		return badRequest("stream", "stream: what is stored is not streamed again: leave it out")
	}
	return nil
}

// storedLabel names all operations on what is stored, in metrics.
const storedLabel = "stored"

// mostStored bounds the body of a request for what is stored, in bytes, and storedIn how long
// the store may take.
const (
	mostStored = 16 << 20
	storedIn   = 20 * time.Second
)

// handleStored registers the operations on what is stored.
func (s *Server) handleStored() {
	for path, methods := range map[string]map[string]do{
		"/responses/{id}": {
			"GET": func(ctx context.Context, q *stored) ([]byte, *backend.Error) { return q.Response(ctx, q.tenant, q.id) },
			"DELETE": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.DeleteResponse(ctx, q.tenant, q.id)
			},
		},
		"/responses/{id}/cancel": {
			"POST": func(ctx context.Context, q *stored) ([]byte, *backend.Error) { return q.Cancel(ctx, q.tenant, q.id) },
		},
		"/responses/{id}/input_items": {
			"GET": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.InputItems(ctx, q.tenant, q.id, q.page)
			},
		},
		"/conversations": {
			"POST": func(ctx context.Context, q *stored) ([]byte, *backend.Error) { return q.Create(ctx, q.tenant, q.body) },
		},
		"/conversations/{id}": {
			"GET": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.Conversation(ctx, q.tenant, q.id)
			},
			"POST": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.Update(ctx, q.tenant, q.id, q.body)
			},
			"DELETE": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.DeleteConversation(ctx, q.tenant, q.id)
			},
		},
		"/conversations/{id}/items": {
			"GET": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.Items(ctx, q.tenant, q.id, q.page)
			},
			"POST": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.Add(ctx, q.tenant, q.id, q.body)
			},
		},
		"/conversations/{id}/items/{item}": {
			"GET": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.Item(ctx, q.tenant, q.id, q.item)
			},
			"DELETE": func(ctx context.Context, q *stored) ([]byte, *backend.Error) {
				return q.DeleteItem(ctx, q.tenant, q.id, q.item)
			},
		},
	} {
		for _, prefix := range []string{"", "/v1"} {
			s.mux.HandleFunc(prefix+path, func(w http.ResponseWriter, r *http.Request) { s.fetch(methods, w, r) })
		}
	}
}

// fetch answers a request for what is stored, by its method.
func (s *Server) fetch(methods map[string]do, w http.ResponseWriter, r *http.Request) {
	answer := methods[r.Method]
	if answer == nil {
		wrongMethod(w, r)
		return
	}
	w.Header().Set(headerNode, s.cfg.Node)
	ctx, cancel := context.WithTimeout(r.Context(), storedIn)
	defer cancel()
	body, failed := s.fetched(ctx, answer, w, r)
	if failed != nil {
		s.cfg.Metrics.finished(storedLabel, failed.status)
		failed.write(w)
		return
	}
	s.cfg.Metrics.finished(storedLabel, http.StatusOK)
	w.Header().Set("Content-Type", backend.JSON)
	_, _ = w.Write(body) // a client that has left needs none
}

func (s *Server) fetched(ctx context.Context, answer do, w http.ResponseWriter, r *http.Request) ([]byte, *apiError) {
	q := &stored{Service: s.cfg.Conversations, r: r, id: r.PathValue("id"), item: r.PathValue("item")}
	var failed *apiError
	if q.tenant, failed = tenantOf(r); failed != nil {
		return nil, failed
	}
	if failed := q.pageOf(); failed != nil {
		return nil, failed
	}
	if r.Method == http.MethodPost {
		free, failed := hold(s.room, r, mostStored)
		if failed != nil {
			return nil, failed
		}
		defer free()
		if failed := q.read(w); failed != nil {
			return nil, failed
		}
	}
	body, wrong := answer(ctx, q)
	if wrong != nil {
		return nil, fromError(*wrong)
	}
	return body, nil
}

// read reads the body, which may be empty.
func (q *stored) read(w http.ResponseWriter) *apiError {
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(readFor))
	body, err := io.ReadAll(http.MaxBytesReader(w, q.r.Body, mostStored))
	_ = deadline.SetReadDeadline(time.Time{})
	if err != nil {
		return badRequest("", "reading the body: %v", err)
	}
	q.body = map[string]json.RawMessage{}
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, &q.body); err != nil || q.body == nil {
		return badRequest("", "the body is not a JSON object")
	}
	return nil
}
