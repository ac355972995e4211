package stream

import (
	"bytes"
	"crypto/subtle"
	"strconv"
	"strings"
	"time"

	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
)

// names is what the decoder must know of a policy. The zero names know no header.
type names struct {
	// session, priority and tenant are names of headers, in lower case; empty: no header
	// has it, but then the API key names the tenant.
	session, priority, tenant string
	// secret is whether that header of the tenant's holds what must not be shown.
	secret bool
	// keys are those that clients need; nil: none.
	keys *keys.Files
	// flow is whether there is flow control; ids is what tenants are hashed with.
	flow bool
	ids  *tenantIDs
	// picker is whether clients of the endpoint-picker protocol are understood, conformance
	// whether its conformance suite is.
	picker, conformance bool
	// probe is the key of the mesh's own probes; empty: there is none.
	probe string
}

// inbound is a message from Envoy, a ProcessingRequest. It is read from its
// bytes straight into an Event: what we don't use, which is most of it, is
// skipped.
type inbound struct {
	Event
	// known is whether the message brings an event; observed, whether nobody
	// reads replies.
	known, observed bool

	names    names
	recent   RequestHead
	modes    [2]Mode // of the request's and the answer's body
	hasModes bool    // whether Envoy said modes; one too old to say is taken to buffer
	served   string
	answered string
	gateway  usageOf
	subset   subset
	selected subset     // by the conformance suite
	fair     bool       // whether Tenant is by a header of the picker protocol
	goals    [3]uint8   // how high the headers of TTFT, TPOT and E2E that count rank; 0: none came
	hold     mem.Buffer // what Body lies in; nil: Body is empty
}

// reset makes in ready for the next message and lets go of the last one's body.
func (in *inbound) reset() {
	if in.hold != nil {
		in.hold.Free()
		in.hold = nil
	}
	in.Event = Event{}
	in.known, in.observed, in.served, in.answered = false, false, "", ""
	in.gateway, in.goals = usageOf{}, [3]uint8{}
	in.subset, in.selected, in.fair = subset{}, subset{}, false
	in.modes, in.hasModes = [2]Mode{}, false
}

// Fields of ProcessingRequest.
const (
	firstEvent    = 2
	lastEvent     = 7
	fieldMetadata = 8
	fieldFacts    = 9 // attributes, by name of a filter
	fieldObserve  = 10
	fieldModes    = 11
)

// eventKinds is by field of ProcessingRequest.
var eventKinds = [lastEvent + 1]Kind{
	2: RequestHeaders, 3: ResponseHeaders, 4: RequestBody, 5: ResponseBody, 6: RequestTrailers, 7: ResponseTrailers,
}

// read reads a ProcessingRequest. The Event's Body lies in b; nothing else does.
func (in *inbound) read(b []byte) error {
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		switch {
		case num == fieldObserve && typ == protowire.VarintType:
			in.observed = r.bool()
		case typ != protowire.BytesType:
			r.skip(num, typ)
		case num >= firstEvent && num <= lastEvent:
			r.fail(in.event(eventKinds[num], r.bytes()))
		case num == fieldMetadata:
			r.fail(in.metadata(r.bytes()))
		case num == fieldFacts:
			r.fail(in.attributes(r.bytes()))
		case num == fieldModes:
			r.fail(in.protocol(r.bytes()))
		default:
			r.skip(num, typ)
		}
	}
	if !in.known {
		return r.err
	}
	in.Request.Mode, in.Request.AnswerMode = in.modes[0], in.modes[1]
	switch in.Kind {
	case RequestHeaders:
		in.Request.Only = in.subset.only()
		if in.selected.given {
			in.Request.Only = in.selected.only()
		}
		if !in.hasModes {
			in.Request.Mode = Buffered
		}
	case ResponseHeaders:
		in.Answer.Served, in.Answer.Answered = in.served, in.answered
		in.Answer.gateway = in.gateway
	case ResponseTrailers:
		in.Answer.gateway = in.gateway
	}
	return r.err
}

// event reads the part of the exchange that the message brings. If there are
// two of different kinds the last counts; of the same kind, both do.
func (in *inbound) event(k Kind, b []byte) error {
	if !in.known || in.Kind != k {
		in.Event = Event{Kind: k}
		if k == RequestHeaders {
			in.Request.Length = -1
		}
	}
	in.known = true
	r := reader{b: b}
	headers, end := protowire.Number(1), protowire.Number(3)
	body := k == RequestBody || k == ResponseBody
	if body {
		end = 2
	}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		switch {
		case num == headers && typ == protowire.BytesType && body:
			in.Body = r.bytes()
		case num == headers && typ == protowire.BytesType:
			r.fail(in.headers(r.bytes()))
		case num == end && typ == protowire.VarintType:
			in.End = r.bool()
		default:
			r.skip(num, typ)
		}
	}
	if k == RequestTrailers || k == ResponseTrailers {
		in.End = true
	}
	return r.err
}

// headers reads a HeaderMap.
func (in *inbound) headers(b []byte) error {
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if num != 1 || typ != protowire.BytesType {
			r.skip(num, typ)
			continue
		}
		h := reader{b: r.bytes()}
		key, value := h.header()
		r.fail(h.err)
		switch in.Kind {
		case RequestHeaders:
			in.Request.Headers++
			in.Request.HeaderBytes += len(key) + len(value)
			in.requestHeader(key, value)
		case ResponseHeaders, ResponseTrailers:
			in.Answer.Headers++
			in.Answer.HeaderBytes += len(key) + len(value)
			in.answerHeader(key, value)
		}
	}
	return r.err
}

// header reads a HeaderValue; which field has the value depends on Envoy's
// settings.
func (r *reader) header() (key, value []byte) {
	var raw []byte
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		switch {
		case typ != protowire.BytesType:
			r.skip(num, typ)
		case num == 1:
			key = r.bytes()
		case num == 2:
			value = r.bytes()
		case num == 3:
			raw = r.bytes()
		default:
			r.skip(num, typ)
		}
	}
	if len(raw) > 0 {
		value = raw
	}
	return key, value
}

// requestHeader takes in a header if it matters. Envoy gives names in lower case.
func (in *inbound) requestHeader(key, value []byte) {
	head, recent := &in.Request, &in.recent
	switch string(key) {
	case ":method":
		head.Method = same(&recent.Method, value)
	case ":path":
		head.Path = same(&recent.Path, value)
	case "content-type":
		head.ContentType = same(&recent.ContentType, value)
	case "content-encoding":
		head.ContentEncoding = same(&recent.ContentEncoding, value)
	case "content-length":
		if n, err := strconv.ParseUint(string(value), 10, 63); err == nil {
			head.Length = int64(n)
		} else {
			head.Length = NoLength
		}
	case "x-request-id":
		head.ID.set(value)
	case "cookie":
		head.Cookie = joined(head.Cookie, string(value))
	default:
		in.otherHeader(key, value)
	}
}

// otherHeader takes in a header whose name is a matter of policy, or of trust.
func (in *inbound) otherHeader(key, value []byte) {
	head, names := &in.Request, &in.names
	switch {
	case in.goalHeader(key, value):
	case names.picker && in.pickerHeader(key, value):
	case names.keys != nil && in.keyHeader(key, value):
	case names.flow && in.flowHeader(key, value):
	case string(key) == names.session:
		head.Session = string(value)
	case string(key) == names.priority:
		head.Priority = same(&in.recent.Priority, value)
	case forbidden(key):
		head.Debug = head.Debug || string(key) == wire.DebugHeader && string(value) == "1"
		if string(key) == wire.ProbeHeader && names.probe != "" {
			head.Probe = subtle.ConstantTimeCompare(value, []byte(names.probe)) == 1
		}
		head.Forbidden = append(head.Forbidden, string(key))
	}
}

// longestGoal bounds what is taken for a goal, in milliseconds: a day.
const longestGoal = 24 * 3600e3

// goalHeader takes in a header that says how fast the answer is to be; false: it is none. Our own
// wins over those of others, and these over their names of before. What is no number above 0,
// and at most a day, says nothing.
func (in *inbound) goalHeader(key, value []byte) bool {
	goal := &in.Request.Goal
	switch string(key) {
	case wire.TTFTHeader:
		in.goal(&goal.TTFT, 0, 3, value)
	case wire.TPOTHeader:
		in.goal(&goal.TPOT, 1, 3, value)
	case wire.E2EHeader:
		in.goal(&goal.E2E, 2, 3, value)
	case wire.LLMDTTFT:
		in.goal(&goal.TTFT, 0, 2, value)
	case wire.LLMDTPOT:
		in.goal(&goal.TPOT, 1, 2, value)
	case wire.OldTTFTHeader:
		in.goal(&goal.TTFT, 0, 1, value)
	case wire.OldTPOTHeader:
		in.goal(&goal.TPOT, 1, 1, value)
	default:
		return false
	}
	return true
}

// goal sets the goal with a number, if none was that ranks as high.
func (in *inbound) goal(to *float64, n int, rank uint8, value []byte) {
	if ms, err := trust.Number(string(value), 0, longestGoal); err == nil && ms > 0 && rank > in.goals[n] {
		*to, in.goals[n] = ms, rank
	}
}

// pickerHeader takes in a header of the endpoint-picker protocol's clients; false: it is
// none. It is forwarded.
func (in *inbound) pickerHeader(key, value []byte) bool {
	head := &in.Request
	switch string(key) {
	case wire.ObjectiveHeader, wire.OldObjectiveHeader:
		head.Objective = same(&in.recent.Objective, value)
	case wire.FairnessHeader, wire.OldFairnessHeader:
		if !in.names.flow || len(value) == 0 {
			break
		}
		head.Tenant, in.fair = in.names.ids.of(byFairness, value), true
		head.TenantName = in.name(head.Tenant, value)
	case wire.RenameHeader, wire.OldRenameHeader:
		head.Rename = same(&in.recent.Rename, value)
	case wire.SelectionHeader:
		if !in.names.conformance || len(value) == 0 {
			return false
		}
		in.selected = subset{given: true, hosts: appendHosts(nil, string(value))}
	default:
		return false
	}
	return true
}

// keyHeader takes in an API key; false: it is none. It says whose the request is, and is no
// engine's business.
func (in *inbound) keyHeader(key, value []byte) bool {
	if name := string(key); name != "authorization" && name != "x-api-key" { // does not escape
		return false
	}
	head := &in.Request
	head.Forbidden = append(head.Forbidden, string(key))
	if tenant, ok := in.names.keys.Tenant(value); ok {
		head.Key, head.Owner = true, tenant
		if in.names.tenant == "" && !in.fair {
			head.Tenant, head.TenantName = in.names.ids.named(tenant), tenant
		}
	}
	return true
}

// flowHeader takes in a header that matters to flow control; false: it doesn't.
func (in *inbound) flowHeader(key, value []byte) bool {
	head, tenant := &in.Request, in.names.tenant
	switch name := string(key); { // does not escape
	case name == wire.TimeoutHeader || name == wire.EnvoyTimeoutHeader:
		if ms, err := strconv.ParseInt(string(value), 10, 32); err == nil && ms > 0 {
			wait := time.Duration(ms) * time.Millisecond
			if head.Patience == 0 || wait < head.Patience {
				head.Patience = wait
			}
		}
	case tenant != "" && name == tenant,
		tenant == "" && (name == "authorization" || name == "x-api-key"):
		if in.fair {
			return true // who is to be treated fairly is said
		}
		value = value[bytes.LastIndexByte(value, ' ')+1:]
		if tenant != "" && in.names.keys == nil { // else it is whose the key is
			head.Owner = same(&in.recent.Owner, value)
		}
		if tenant == "" || in.names.secret {
			head.Tenant = in.names.ids.of(byKey, value)
			head.TenantName = in.nameKey(head.Tenant, value)
		} else {
			head.Tenant = in.names.ids.of(byHeader, value)
			head.TenantName = in.name(head.Tenant, value)
		}
	default:
		return false
	}
	return true
}

// forbidden reports whether a client may not send a header of this name: it would
// choose the host.
func forbidden(key []byte) bool {
	if len(key) < 2 || key[0] != 'x' {
		return false
	}
	name := string(key) // does not escape
	return strings.HasPrefix(name, wire.GatewayPrefix) || strings.HasPrefix(name, wire.OwnPrefix) || name == wire.RetriesHeader ||
		name == wire.PerTryHeader || name == wire.HedgeHeader
}

// longestSame bounds what is kept of a header for the next request, in bytes.
const longestSame = 256

// same returns b as a string, the very one of the last request if that had the
// same.
func same(last *string, b []byte) string {
	if string(b) == *last {
		return *last
	}
	s := string(b)
	if len(s) <= longestSame {
		*last = s
	}
	return s
}

// joined joins what came in several Cookie headers, as HTTP/2 may send it.
func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// answerHeader takes in a header or trailer of the answer if it matters.
func (in *inbound) answerHeader(key, value []byte) {
	a := &in.Answer
	switch string(key) {
	case ":status":
		a.Status, _ = strconv.Atoi(string(value))
	case wire.AttemptsHeader:
		a.Attempts, _ = strconv.Atoi(string(value))
	case wire.UnansweredHeader:
		n, err := strconv.ParseUint(string(value), 10, 8)
		a.Halted, a.Unanswered = err == nil, int(n)
	case wire.LoadHeader:
		a.Load = string(value)
	case wire.UsageHeader:
		a.Usage = string(value)
	case wire.ResponseIDHeader:
		a.Response = string(value)
	default:
		a.foreign.header(key, value)
	}
}

// protocol reads how bodies come.
func (in *inbound) protocol(b []byte) error {
	in.hasModes = true
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if typ == protowire.VarintType && (num == 1 || num == 2) {
			in.modes[num-1] = mode(filter.ProcessingMode_BodySendMode(r.varint()))
		} else {
			r.skip(num, typ)
		}
	}
	return r.err
}

func mode(m filter.ProcessingMode_BodySendMode) Mode {
	switch m {
	case filter.ProcessingMode_STREAMED:
		return Streamed
	case filter.ProcessingMode_BUFFERED, filter.ProcessingMode_BUFFERED_PARTIAL:
		return Buffered
	case filter.ProcessingMode_FULL_DUPLEX_STREAMED:
		return Duplex
	default:
		return Unseen
	}
}

// filterName is under which name Envoy gives its attributes.
const filterName = "envoy.filters.http.ext_proc"

// attributes reads what Envoy says of an answer: an entry of a map of Structs.
func (in *inbound) attributes(entry []byte) error {
	if k := (&reader{b: entry}); string(k.field(1)) != filterName {
		return nil
	}
	return eachValue(entry, func(first bool, facts []byte) error {
		if first {
			in.answered = ""
		}
		return eachEntry(facts, wire.UpstreamAttribute, func(first bool, value []byte) error {
			if first {
				in.answered = ""
			}
			var err error
			in.answered, err = textValue(in.answered, value)
			return err
		})
	})
}

// Fields of Metadata.
const (
	structs = 1
	typed   = 2
)

// metadata decodes Envoy's dynamic metadata: the endpoints that may be named, the host that
// override_host says it chose, and what an answer has needed.
func (in *inbound) metadata(b []byte) error {
	err := eachEntryOf(typed, b, wire.TokenUsageNamespace, func(first bool, usage []byte) error {
		if first {
			in.gateway = usageOf{}
		}
		in.gateway.tokenUsage(usage)
		return nil
	})
	if err != nil {
		return err
	}
	err = eachEntry(b, wire.SubsetNamespace, func(first bool, hint []byte) error {
		if first {
			in.subset = subset{}
		}
		return eachEntry(hint, wire.SubsetKey, in.subset.value)
	})
	if err != nil {
		return err
	}
	return eachEntry(b, wire.LBNamespace, func(first bool, lb []byte) error {
		if first {
			in.served = ""
		}
		return eachEntry(lb, wire.ServedKey, func(first bool, value []byte) error {
			if first {
				in.served = ""
			}
			var err error
			in.served, err = textValue(in.served, value)
			return err
		})
	})
}

// valueTypes are the types of the fields of structpb.Value.
var valueTypes = [...]protowire.Type{
	1: protowire.VarintType, 2: protowire.Fixed64Type, 3: protowire.BytesType, 4: protowire.VarintType,
	5: protowire.BytesType, 6: protowire.BytesType,
}

// Fields of structpb.Value.
const (
	valueText = 3
	valueList = 6
)

// textValue reads a structpb.Value that adds to an earlier one, and returns its
// text; empty: it is of another kind.
func textValue(text string, b []byte) (string, error) {
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		switch {
		case int(num) >= len(valueTypes) || typ != valueTypes[num]:
			r.skip(num, typ)
		case num == valueText:
			text = string(r.bytes())
		default:
			text = ""
			r.skip(num, typ)
		}
	}
	return text, r.err
}

// eachEntry calls f for the value of each entry with the key in the map that is
// a message's field 1. Later entries replace earlier ones: first is true for
// the first value of an entry.
func eachEntry(b []byte, key string, f func(first bool, value []byte) error) error {
	return eachEntryOf(structs, b, key, f)
}

// eachEntryOf is the same of the map that is another field.
func eachEntryOf(field protowire.Number, b []byte, key string, f func(first bool, value []byte) error) error {
	r := reader{b: b}
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if num != field || typ != protowire.BytesType {
			r.skip(num, typ)
			continue
		}
		entry := r.bytes()
		if k := (&reader{b: entry}); string(k.field(1)) == key {
			r.fail(eachValue(entry, f))
		}
	}
	return r.err
}

func eachValue(entry []byte, f func(first bool, value []byte) error) error {
	r := reader{b: entry}
	first := true
	for num, typ, ok := r.next(); ok; num, typ, ok = r.next() {
		if num != 2 || typ != protowire.BytesType {
			r.skip(num, typ)
			continue
		}
		r.fail(f(first, r.bytes()))
		first = false
	}
	if first {
		r.fail(f(true, nil))
	}
	return r.err
}
