package stream

import (
	"errors"
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/extproc/internal/unpack"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// input is what a decision is made of. No stage changes it.
type input struct {
	table *pick.Table
	head  *RequestHead
	api   apis.API
	// body is what came of the body; nil: nothing did. whole is whether that is all.
	body  []byte
	whole bool
	now   time.Time
}

// understood is what a request asks for.
type understood struct {
	// model serves the request; nil: there is none, and Envoy's own policy chooses.
	model *pick.Model
	// asked is the client's name for the model if that is another; else empty. name is
	// what the model is called in what is forwarded then.
	asked, name string
	priority    string
	// blind is whether the body was not decoded: no field of the openai.Request counts.
	blind bool
	// unseen is whether a rewrite of the policy may have been meant, but no body came.
	unseen bool
	// size is how many bytes of the body came, its content encoding undone.
	size    int
	forward forward
}

// forward is what is forwarded in place of a body. The zero forward changes nothing.
type forward struct {
	body []byte // nil: the body as it came
	bare bool   // whether a content encoding was undone
}

// bodies is the memory of bodies that are forwarded in place of those that came.
type bodies struct {
	bare    []byte // without a content encoding
	renamed []byte // with another model
}

// mostUnpacked bounds a body without its content encoding where the policy has no
// limit, in bytes.
const mostUnpacked = 256 << 20

// understand finds out what a request asks for. It is the first stage. The body is
// decoded into r, which means something only if the result is not blind.
func understand(in *input, r *openai.Request, mem *bodies) (understood, *openai.Error) {
	u := understood{priority: priorityOf(in)}
	body, err := bare(in, mem)
	if err != nil {
		return u, err
	}
	if len(body) > 0 && &body[0] != &in.body[0] {
		u.forward = forward{body: body, bare: true}
	}
	u.size = len(body)
	encoded := !u.forward.bare && unpack.Of(in.head.ContentEncoding) != unpack.Identity
	u.blind = in.api == apis.Other || !in.whole && body == nil || encoded
	if !u.blind {
		err := u.decode(in, r, body)
		if err != nil && in.whole {
			return u, err
		}
		u.blind = err != nil || !complete(in)
	}
	if u.blind {
		if err := u.guess(in, r, body); err != nil {
			return u, err
		}
	}
	if u.asked != "" {
		u.rename(r, mem)
	}
	return u, nil
}

// bare returns the body without its content encoding: the engines' servers do not
// undo one. A part of a body, which only who has the rest can read, stays as it is.
func bare(in *input, mem *bodies) ([]byte, *openai.Error) {
	e := unpack.Of(in.head.ContentEncoding)
	if e == unpack.Identity || in.body == nil || in.api == apis.Other {
		return in.body, nil
	}
	limit := in.table.Policy.MaxBody
	if limit <= 0 {
		limit = mostUnpacked
	}
	b, err := unpack.Append(mem.bare[:0], e, in.body, limit)
	mem.bare = b
	switch {
	case err == nil && len(b) > 0:
		return b, nil
	case errors.Is(err, unpack.ErrTooLarge):
		return nil, openai.TooLarge(limit)
	case in.whole:
		return nil, openai.BadEncoding(in.head.ContentEncoding)
	default:
		return in.body, nil
	}
}

// decode decodes the body and finds its model.
func (u *understood) decode(in *input, r *openai.Request, body []byte) *openai.Error {
	if err := parse(in, r, body); err != nil {
		return err
	}
	switch {
	case len(r.Model) > 0:
		u.model, u.asked, u.name = modelOf(in, r)
	case r.Cut || in.api.Row().AnyModel:
		u.model = in.table.Default
	}
	switch {
	case u.model != nil:
		return nil
	case len(r.Model) > 0:
		return openai.ModelNotFound(string(r.Model))
	default:
		return openai.NoModel()
	}
}

// complete reports whether a body that could be decoded is all there is: JSON shows its
// end, a form need not be decoded to its end.
func complete(in *input) bool { return in.whole || readerOf(in) == apis.JSON }

// readerOf is how the body is decoded: as its operation has it, else as it says itself.
func readerOf(in *input) apis.Reader {
	if in.api == apis.Other {
		return apis.ReaderOf(in.head.ContentType)
	}
	return in.api.Row().Reader
}

// parse decodes the body. The path may name the model in its stead.
func parse(in *input, r *openai.Request, body []byte) *openai.Error {
	var err *openai.Error
	switch readerOf(in) {
	case apis.Form:
		err = r.ParseForm(in.api, in.head.ContentType, body)
	case apis.Fields:
		err = r.ParseFields(in.api, body)
	default:
		err = r.Parse(in.api, body)
	}
	if len(r.Model) == 0 {
		r.Model = inPath(in)
	}
	return err
}

// inPath returns the model that the path names; nil: it doesn't.
func inPath(in *input) []byte {
	if name := apis.ModelIn(in.head.Path); name != "" {
		return []byte(name)
	}
	return nil
}

// guess finds the model of a request that was not decoded: the one that it names all
// the same, else the default.
func (u *understood) guess(in *input, r *openai.Request, body []byte) *openai.Error {
	u.model, u.asked, u.name = nil, "", ""
	switch {
	case len(body) == 0:
		r.Model = inPath(in)
		u.unseen = body == nil && in.api != apis.Other && len(in.table.Policy.Rewrites) > 0
		if len(r.Model) > 0 {
			u.model, _, _ = modelOf(in, r)
		}
	case parse(in, r, body) == nil && complete(in):
		u.model, u.asked, u.name = modelOf(in, r)
	case len(r.Model) > 0:
		// Envoy has cut it off behind the model's name. It can't be changed: the rest of
		// it passes through.
		u.model = in.table.Serving(r.Model)
	}
	if u.model == nil && in.whole && in.api == apis.Other && len(r.Model) > 0 {
		return openai.ModelNotFound(string(r.Model))
	}
	if u.model == nil {
		u.model = in.table.Default
	}
	return nil
}

// modelOf returns the model that serves a request, nil if there is none. If the gateway or
// the policy gives it another name than the client's, that is name, and asked the client's.
func modelOf(in *input, r *openai.Request) (m *pick.Model, asked, name string) {
	if name := in.head.Rename; name != "" && name != string(r.Model) {
		return in.table.Serving([]byte(name)), string(r.Model), name
	}
	rewrite := in.table.Policy.Rewrites[string(r.Model)]
	if rewrite == nil {
		rewrite = in.table.Policy.Rewrite
	}
	if rewrite == nil || in.head.Rename != "" {
		return in.table.Serving(r.Model), "", ""
	}
	if m = continued(in, r, rewrite); m == nil {
		m = rewrite.Choose(in.table, conversation(in, r))
	}
	switch {
	case m == nil:
		return in.table.Serving(r.Model), "", ""
	case m.Name == string(r.Model):
		return m, "", ""
	}
	return m, string(r.Model), m.Name
}

// continued returns the model that made the response which the request continues:
// of those that serve the name it must be the same again. nil: it is not known.
func continued(in *input, r *openai.Request, rewrite *pick.Rewrite) *pick.Model {
	if r.Continues() == nil {
		return nil
	}
	for i := range rewrite.To {
		m := in.table.Models[rewrite.To[i].Model]
		if m == nil {
			continue
		}
		if _, ok := in.table.Policy.Prefixes.Get(responseKey(m, r.Continues()), in.now); ok {
			return m
		}
	}
	return nil
}

// opening is how much of a text names the conversation, in bytes.
const opening = 512

// conversation names the conversation before its model is known: by the client's
// name for it, else by how it began, which stays the same from turn to turn, else
// by who asks.
func conversation(in *input, r *openai.Request) session.Key {
	if in.head.Session != "" {
		return session.Named(0, in.head.Session)
	}
	k := session.Key(0)
	for i := range r.Messages {
		m := &r.Messages[i]
		k = session.Next(session.Next(session.Named(k, m.Role), m.Rest), m.Content)
		if m.Role == "user" {
			break
		}
	}
	if k != 0 {
		return k
	}
	if len(r.User) > 0 {
		return session.Next(k, r.User)
	}
	if id, _, ok := in.table.Policy.Cookies.Read(in.head.Cookie, in.now); ok {
		return session.Key(id)
	}
	if len(r.Prompts) > 0 {
		text := r.Prompts[0].Text
		return session.Next(k, text[:min(len(text), opening)])
	}
	return k
}

// rename has the body forwarded with the name that its model is to have.
func (u *understood) rename(r *openai.Request, mem *bodies) {
	if !r.HasModel() {
		u.asked, u.name = "", "" // its name stands elsewhere
		return
	}
	mem.renamed = r.WithModel(mem.renamed[:0], u.name)
	u.forward.body = mem.renamed
}

// priorityOf is the request's own priority, if it names one that exists, else that of its
// objective.
func priorityOf(in *input) string {
	switch p := in.head.Priority; p {
	case wire.Critical, wire.Standard, wire.Sheddable:
		return p
	}
	if in.head.Objective != "" {
		if p, ok := in.table.Policy.Objectives[in.head.Objective]; ok {
			return p
		}
	}
	return in.table.Policy.Priority
}
