package stream

import (
	"math"
	"slices"
	"strconv"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/internal/wire"
)

// outbound is a message to Envoy, a ProcessingResponse: a Reply that is written
// straight to its bytes.
type outbound struct {
	reply *Reply
	// hold is what the Event's Body lies in; a Chunk that does too goes out
	// without a copy.
	hold mem.Buffer

	w       writer
	scratch []byte // texts, before they are written
}

// responseFields is by the kind of reply the field of ProcessingResponse that
// answers it.
var responseFields = [...]protowire.Number{
	RequestHeaders: 1, ResponseHeaders: 2, RequestBody: 3, ResponseBody: 4, RequestTrailers: 5, ResponseTrailers: 6,
}

// continues are the replies that change nothing: Envoy continues. Shared, never changed.
var continues = func() (all [len(responseFields)]mem.BufferSlice) {
	for k, num := range responseFields {
		all[k] = mem.BufferSlice{mem.SliceBuffer{byte(protowire.EncodeTag(num, protowire.BytesType)), 0}}
	}
	return all
}()

// Fields of ProcessingResponse, CommonResponse, HeaderMutation, BodyMutation.
const (
	fieldDynamicMetadata  = 8
	fieldOverrideTimeout  = 10
	fieldHeaderMutation   = 2
	fieldBodyMutation     = 3
	fieldClearRoute       = 5
	fieldSetHeaders       = 1
	fieldRemoveHeaders    = 2
	fieldStreamedResponse = 3
)

// bytes returns the message. Errors are left to protobuf: they are rare.
func (o *outbound) bytes() mem.BufferSlice {
	r := o.reply
	if r.Kind == Extend {
		return o.extend(r.Wait)
	}
	if !r.changesHeaders() && !r.Duplex && !r.Replace && r.Observed == nil {
		return continues[r.Kind]
	}
	w := &o.w
	w.reset(len(r.Chunk))
	o.body(r)
	if r.Decision != nil {
		w.number(fieldClearRoute, 1) // the route depends on the model
	}
	// What follows stands before the body: it is written behind it.
	o.headers(r)
	if r.Kind != RequestTrailers && r.Kind != ResponseTrailers {
		w.message(1, 0) // CommonResponse, in HeadersResponse or BodyResponse
	}
	w.message(responseFields[r.Kind], 0)
	if r.Decision != nil {
		o.metadata(r.Decision)
	}
	if r.Observed != nil {
		o.observed(r.Observed)
	}
	if len(r.Chunk) == 0 {
		return sealed(w.written(), nil)
	}
	return sealed(w.written(), o.chunk(r.Chunk))
}

// message is one message with all that gRPC wants of it, so that it is allocated at once:
// gRPC may hold on to it for longer than the exchange lasts.
type message struct {
	parts [2]mem.Buffer
	head  mem.SliceBuffer
	few   [usual]byte // where head is if it fits
}

// usual is what most messages fit into, in bytes: with the rest a kibibyte.
const usual = 968

// sealed returns the message of a copy of head, and of a tail; nil: there is none.
func sealed(head []byte, tail mem.Buffer) mem.BufferSlice {
	m := new(message)
	m.head = append(m.few[:0], head...)
	m.parts = [2]mem.Buffer{&m.head, tail}
	if tail == nil {
		return m.parts[:1]
	}
	return m.parts[:]
}

// extend returns the message that asks Envoy to wait so long.
func (o *outbound) extend(wait time.Duration) mem.BufferSlice {
	w := &o.w
	w.reset(0)
	if ns := wait % time.Second; ns > 0 {
		w.number(2, uint64(ns))
	}
	if s := wait / time.Second; s > 0 {
		w.number(1, uint64(s))
	}
	w.message(fieldOverrideTimeout, 0)
	return sealed(w.written(), nil)
}

// body writes the body mutation, which ends with the chunk: the chunk itself is
// the message's tail.
func (o *outbound) body(r *Reply) {
	if !r.Duplex && !r.Replace {
		return
	}
	w := &o.w
	if len(r.Chunk) > 0 || r.Replace {
		w.varint(uint64(len(r.Chunk)))
		w.tag(1, protowire.BytesType)
	}
	if r.Duplex {
		if r.End {
			w.number(2, 1)
		}
		w.message(fieldStreamedResponse, 0)
	}
	w.message(fieldBodyMutation, 0)
}

// chunk returns the bytes as a buffer of their own, or as the part of hold that
// they are.
func (o *outbound) chunk(b []byte) mem.Buffer {
	if o.hold != nil {
		whole := o.hold.ReadOnlyData()
		if at := cap(whole) - cap(b); at >= 0 && at+len(b) <= len(whole) && &whole[at] == &b[0] {
			return o.hold.Slice(at, at+len(b))
		}
	}
	return mem.Copy(b, buffers)
}

// changesHeaders reports whether the reply says anything of headers.
func (r *Reply) changesHeaders() bool {
	return r.Decision != nil || len(r.Remove) > 0 || r.Cookie != "" || r.Length > 0 || r.Explanation != nil || r.Served != ""
}

// headers writes the header mutation.
func (o *outbound) headers(r *Reply) {
	if !r.changesHeaders() {
		return
	}
	w := &o.w
	mark := w.mark()
	for _, name := range slices.Backward(r.Remove) {
		if !r.replaces(name) {
			text(w, fieldRemoveHeaders, name)
		}
	}
	if r.Length > 0 {
		header(w, "content-length", o.integer(r.Length), core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	if r.Explanation != nil {
		header(w, wire.DecisionHeader, r.Explanation, core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	if r.Served != "" {
		header(w, wire.ServedHeader, r.Served, core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	if r.Cookie != "" {
		header(w, "set-cookie", r.Cookie, core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	} else if r.Decision != nil {
		o.decision(r.Decision)
	}
	w.message(fieldHeaderMutation, mark)
}

// replaces reports whether a header that the client has sent is set, so that it need not be
// removed.
func (r *Reply) replaces(name string) bool {
	if r.Decision == nil {
		return false
	}
	own, _ := r.Decision.Key.Header()
	return own == name
}

// decision writes the headers that say where the request goes.
func (o *outbound) decision(d *Decision) {
	const set = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	w := &o.w
	if d.Exact {
		header(w, wire.PromptTokensHeader, o.integer(d.PromptTokens), set)
	}
	if len(d.Chain) > 0 {
		o.scratch = d.appendChain(o.scratch[:0])
		header(w, wire.PrefixHeader, o.scratch, set)
	}
	if name, value := d.Key.Header(); name != "" {
		header(w, name, string(value), set)
	}
	if d.Hedge.After > 0 {
		header(w, wire.HedgeHeader, "true", set)
		header(w, wire.PerTryHeader, o.integer(int(d.Hedge.After.Milliseconds())), set)
	}
	if d.Owner != "" {
		header(w, wire.TenantHeader, d.Owner, set)
	}
	if d.Ranked {
		header(w, wire.PriorityHeader, d.Priority, set)
	}
	if d.Request != 0 {
		o.scratch = strconv.AppendUint(o.scratch[:0], d.Request, 16)
		header(w, wire.RequestHeader, o.scratch, set)
	}
	header(w, wire.RetriesHeader, o.integer(d.Retries), set)
	header(w, wire.ModelHeader, d.Model, set)
	o.scratch = d.appendHosts(o.scratch[:0])
	header(w, wire.DestinationHeader, o.scratch, set)
}

func (o *outbound) integer(n int) []byte {
	o.scratch = strconv.AppendInt(o.scratch[:0], int64(n), 10)
	return o.scratch
}

// header writes a HeaderValueOption in a HeaderMutation.
func header[T string | []byte](w *writer, key string, value T, action core.HeaderValueOption_HeaderAppendAction) {
	option := w.mark()
	if action != 0 {
		w.number(3, uint64(action))
	}
	mark := w.mark()
	if len(value) > 0 {
		text(w, 3, value) // raw_value
	}
	text(w, 1, key)
	w.message(1, mark)
	w.message(fieldSetHeaders, option)
}

// metadata writes the list for override_host, and facts for the access log.
func (o *outbound) metadata(d *Decision) {
	w := &o.w
	mark := w.mark()

	own := entry(w)
	if d.Charged != flow.Unanswered {
		fact(w, wire.FactCharged, d.Charged.String())
		number(w, wire.FactReserved, d.Reserved)
	}
	fact(w, wire.FactPriority, d.Priority)
	number(w, wire.FactOutputExpected, d.OutputTokens)
	number(w, wire.FactCachedExpected, d.Choice.List[0].Cached)
	if d.Exact {
		number(w, wire.FactPromptTokens, d.PromptTokens)
	} else {
		number(w, wire.FactPromptExpected, d.PromptTokens)
	}
	o.scratch = d.appendText(o.scratch[:0])
	fact(w, wire.FactDecision, o.scratch)
	fact(w, wire.FactSession, d.Session)
	fact(w, wire.FactModel, d.Model)
	if d.Probe {
		fact(w, wire.FactProbe, "1")
	}
	if d.Asked != "" {
		fact(w, wire.FactAsked, d.Asked)
	}
	own.structure(w, wire.FactsNamespace)

	lb := entry(w)
	o.scratch = d.appendHosts(o.scratch[:0])
	fact(w, wire.DestinationHeader, o.scratch)
	lb.structure(w, wire.LBNamespace)

	w.message(fieldDynamicMetadata, mark)
}

// observed writes facts for the access log that are known only now.
func (o *outbound) observed(n *Observed) {
	w := &o.w
	mark := w.mark()
	own := entry(w)
	if n.Charged != flow.Unanswered {
		fact(w, wire.FactCharged, n.Charged.String())
	}
	if n.First >= 0 {
		number(w, wire.FactFirstToken, int(n.First.Milliseconds()))
	}
	if n.Output >= 0 {
		number(w, wire.FactOutputTokens, n.Output)
	}
	if n.Cached >= 0 {
		number(w, wire.FactCachedTokens, n.Cached)
	}
	if n.Prompt >= 0 {
		number(w, wire.FactPromptTokens, n.Prompt)
	}
	own.structure(w, wire.FactsNamespace)
	w.message(fieldDynamicMetadata, mark)
}

// mapEntry is the mark at which an entry of a structpb.Struct ends.
type mapEntry int

func entry(w *writer) mapEntry { return mapEntry(w.mark()) }

// end writes the head of an entry whose value was written.
func (p mapEntry) end(w *writer, key string) {
	w.message(2, int(p)) // the structpb.Value
	text(w, 1, key)
	w.message(1, int(p))
}

// structure ends an entry whose value is a Struct.
func (p mapEntry) structure(w *writer, key string) {
	w.message(5, int(p))
	p.end(w, key)
}

// fact writes an entry with a text.
func fact[T string | []byte](w *writer, key string, value T) {
	p := entry(w)
	text(w, 3, value)
	p.end(w, key)
}

// number writes an entry with a number.
func number(w *writer, key string, value int) {
	p := entry(w)
	w.double(2, math.Float64bits(float64(value)))
	p.end(w, key)
}

// immediate is the message that answers the client.
func immediate(r *Reply) *extproc.ProcessingResponse {
	const set = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	hs := []*core.HeaderValueOption{option("content-type", "application/json", set)}
	a := &extproc.ImmediateResponse{Status: &envoytype.HttpStatus{Code: envoytype.StatusCode_OK}, Body: r.Answer, Details: "millrace_models"}
	if err := r.Error; err != nil {
		a.Status.Code, a.Body, a.Details = envoytype.StatusCode(err.Status), err.JSON(), "millrace_"+err.Code
		if err.RetryAfter > 0 {
			hs = append(hs, option("retry-after", strconv.Itoa(err.RetryAfter), set))
		}
		for _, h := range err.Headers {
			hs = append(hs, option(h.Name, h.Value, set))
		}
	}
	a.Headers = &extproc.HeaderMutation{SetHeaders: hs}
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: a}}
}

func option(key, val string, action core.HeaderValueOption_HeaderAppendAction) *core.HeaderValueOption {
	return &core.HeaderValueOption{
		Header:       &core.HeaderValue{Key: key, RawValue: []byte(val)},
		AppendAction: action,
	}
}
