package stream

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
)

// What follows reads and writes the same messages by way of protobuf: slowly, but
// surely.

// readEvent fills ev from Envoy's message; false: it brings no event.
// policy names the headers that carry session and priority; nil: none is known.
func readEvent(m *extproc.ProcessingRequest, policy *pick.Policy, ev *Event) bool {
	switch r := m.Request.(type) {
	case *extproc.ProcessingRequest_RequestHeaders:
		ev.Kind, ev.End = RequestHeaders, r.RequestHeaders.GetEndOfStream()
		readRequest(r.RequestHeaders.GetHeaders(), policy, &ev.Request)
		ev.Request.Only = allowed(m.GetMetadataContext())
	case *extproc.ProcessingRequest_RequestBody:
		ev.Kind, ev.End, ev.Body = RequestBody, r.RequestBody.GetEndOfStream(), r.RequestBody.GetBody()
	case *extproc.ProcessingRequest_RequestTrailers:
		ev.Kind, ev.End = RequestTrailers, true
	case *extproc.ProcessingRequest_ResponseHeaders:
		ev.Kind, ev.End = ResponseHeaders, r.ResponseHeaders.GetEndOfStream()
		readAnswer(r.ResponseHeaders.GetHeaders(), &ev.Answer)
		ev.Answer.gateway = readGateway(m.GetMetadataContext())
		ev.Answer.Served = served(m.GetMetadataContext())
		ev.Answer.Answered = m.GetAttributes()["envoy.filters.http.ext_proc"].GetFields()["upstream.address"].GetStringValue()
	case *extproc.ProcessingRequest_ResponseBody:
		ev.Kind, ev.End, ev.Body = ResponseBody, r.ResponseBody.GetEndOfStream(), r.ResponseBody.GetBody()
	case *extproc.ProcessingRequest_ResponseTrailers:
		ev.Kind, ev.End = ResponseTrailers, true
		readAnswer(r.ResponseTrailers.GetTrailers(), &ev.Answer)
		ev.Answer.gateway = readGateway(m.GetMetadataContext())
	default:
		return false
	}
	readModes(ev.Kind, m.GetProtocolConfig(), &ev.Request)
	return true
}

// readRequest reads the headers that matter. Envoy gives names in lower case.
func readRequest(hs *core.HeaderMap, policy *pick.Policy, head *RequestHead) {
	head.Length = -1
	for _, h := range hs.GetHeaders() {
		head.Headers++
		head.HeaderBytes += len(h.GetKey()) + len(value(h))
		switch key := h.GetKey(); key {
		case ":method":
			head.Method = value(h)
		case ":path":
			head.Path = value(h)
		case "content-type":
			head.ContentType = value(h)
		case "content-encoding":
			head.ContentEncoding = value(h)
		case "content-length":
			head.Length = NoLength
			if n, err := strconv.ParseUint(value(h), 10, 63); err == nil {
				head.Length = int64(n)
			}
		case "cookie":
			head.Cookie = joined(head.Cookie, value(h))
		default:
			readOther(key, h, policy, head)
		}
	}
	for _, names := range [][3]string{{"x-slo-ttft-ms", "x-slo-tpot-ms"}, {"x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"}, goalHeaders} {
		for i, to := range []*float64{&head.Goal.TTFT, &head.Goal.TPOT, &head.Goal.E2E} {
			for _, h := range hs.GetHeaders() {
				ms, err := trust.Number(value(h), 0, 24*3600e3)
				if h.GetKey() == names[i] && names[i] != "" && err == nil && ms > 0 {
					*to = ms
					break
				}
			}
		}
	}
}

var goalHeaders = [3]string{"x-millrace-slo-ttft-ms", "x-millrace-slo-tpot-ms", "x-millrace-slo-e2e-ms"}

// readOther reads a header whose name is a matter of policy, or of trust.
func readOther(key string, h *core.HeaderValue, policy *pick.Policy, head *RequestHead) {
	switch {
	case slices.Contains(goalHeaders[:], key):
	case policy != nil && key == policy.SessionHeader:
		head.Session = value(h)
	case policy != nil && key == policy.PriorityHeader:
		head.Priority = value(h)
	case strings.HasPrefix(key, "x-gateway-"), strings.HasPrefix(key, "x-millrace-"), key == wire.RetriesHeader, key == wire.PerTryHeader, key == wire.HedgeHeader:
		head.Forbidden = append(head.Forbidden, key)
		head.Debug = head.Debug || key == "x-millrace-debug" && value(h) == "1"
	}
}

// value is a header's value; which field has it depends on Envoy's settings.
func value(h *core.HeaderValue) string {
	if len(h.GetRawValue()) > 0 {
		return string(h.GetRawValue())
	}
	return h.GetValue()
}

// readModes reads how bodies come. An Envoy too old to say is taken to buffer.
func readModes(k Kind, c *extproc.ProtocolConfiguration, head *RequestHead) {
	if c == nil && k == RequestHeaders {
		head.Mode = Buffered
	}
	if c == nil {
		return
	}
	head.Mode, head.AnswerMode = mode(c.GetRequestBodyMode()), mode(c.GetResponseBodyMode())
}

// readAnswer reads the headers or trailers that matter.
func readAnswer(hs *core.HeaderMap, a *AnswerHead) {
	for _, h := range hs.GetHeaders() {
		a.Headers++
		a.HeaderBytes += len(h.GetKey()) + len(value(h))
		switch h.GetKey() {
		case ":status":
			a.Status, _ = strconv.Atoi(value(h))
		case wire.AttemptsHeader:
			a.Attempts, _ = strconv.Atoi(value(h))
		case wire.LoadHeader:
			a.Load = value(h)
		case wire.UsageHeader:
			a.Usage = value(h)
		case wire.ResponseIDHeader:
			a.Response = value(h)
		default:
			a.foreign.header([]byte(h.GetKey()), []byte(value(h)))
		}
	}
}

// readGateway reads what a gateway says that an answer has needed.
func readGateway(m *core.Metadata) (s usageOf) {
	var u aiv3.TokenUsage
	if proto.Unmarshal(m.GetTypedFilterMetadata()[wire.TokenUsageNamespace].GetValue(), &u) == nil && u.GetExtractionStatus() == aiv3.TokenUsage_COMPLETE {
		s.prompt, s.cached = tokens(float64(u.GetInputTokens().GetValue())), tokens(float64(u.GetInputTokenDetails().GetCachedTokens().GetValue()))
		s.completion, s.ok = tokens(float64(u.GetOutputTokens().GetValue())), u.GetOutputTokens() != nil
	}
	return s
}

// served returns the host that override_host says it chose.
func served(m *core.Metadata) string {
	return m.GetFilterMetadata()[wire.LBNamespace].GetFields()[wire.ServedKey].GetStringValue()
}

// allowed returns the endpoints that the gateway allows.
func allowed(m *core.Metadata) pick.Subset {
	v, ok := m.GetFilterMetadata()[wire.SubsetNamespace].GetFields()[wire.SubsetKey]
	if !ok {
		return nil
	}
	texts := []string{v.GetStringValue()}
	for _, e := range v.GetListValue().GetValues() {
		texts = append(texts, e.GetStringValue())
	}
	only := pick.Subset{}
	for _, host := range strings.Split(strings.Join(texts, ","), ",") {
		host = strings.TrimSpace(host)
		if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
			host = host[1 : len(host)-1]
		}
		if host != "" {
			only = append(only, host)
		}
	}
	slices.Sort(only)
	return slices.Compact(only)
}

// Replies that change nothing. Shared, never changed.
var unchangedReplies = [...]*extproc.ProcessingResponse{
	RequestHeaders:   {Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{}}},
	RequestBody:      {Response: &extproc.ProcessingResponse_RequestBody{RequestBody: &extproc.BodyResponse{}}},
	RequestTrailers:  {Response: &extproc.ProcessingResponse_RequestTrailers{RequestTrailers: &extproc.TrailersResponse{}}},
	ResponseHeaders:  {Response: &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{}}},
	ResponseBody:     {Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: &extproc.BodyResponse{}}},
	ResponseTrailers: {Response: &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{}}},
}

// writeReply returns the reply as Envoy's message.
func writeReply(r *Reply) *extproc.ProcessingResponse {
	if r.Kind == Immediate {
		return immediate(r)
	}
	if r.Kind == Extend {
		return &extproc.ProcessingResponse{OverrideMessageTimeout: durationpb.New(r.Wait)}
	}
	if r.Decision == nil && len(r.Remove) == 0 && !r.Duplex && !r.Replace && r.Cookie == "" && r.Explanation == nil && r.Served == "" && r.Observed == nil {
		return unchangedReplies[r.Kind]
	}
	common := &extproc.CommonResponse{}
	if r.Decision != nil || len(r.Remove) > 0 || r.Cookie != "" || r.Length > 0 || r.Explanation != nil || r.Served != "" {
		common.HeaderMutation = &extproc.HeaderMutation{RemoveHeaders: r.Remove}
	}
	out := &extproc.ProcessingResponse{}
	if r.Decision != nil {
		hosts := string(r.Decision.appendHosts(nil))
		common.ClearRouteCache = true // the route depends on the model
		common.HeaderMutation.SetHeaders = decisionHeaders(r.Decision, hosts)
		out.DynamicMetadata = decisionMetadata(r.Decision, hosts)
	}
	if r.Observed != nil {
		out.DynamicMetadata = observedMetadata(r.Observed)
	}
	if r.Cookie != "" {
		common.HeaderMutation.SetHeaders = []*core.HeaderValueOption{
			option("set-cookie", r.Cookie, core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD),
		}
	}
	if r.Served != "" {
		common.HeaderMutation.SetHeaders = append(common.HeaderMutation.SetHeaders, option(wire.ServedHeader, r.Served, core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	if r.Explanation != nil {
		why := option("x-millrace-decision", string(r.Explanation), core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
		common.HeaderMutation.SetHeaders = append(common.HeaderMutation.SetHeaders, why)
	}
	if r.Length > 0 {
		length := option("content-length", strconv.Itoa(r.Length), core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
		common.HeaderMutation.SetHeaders = append(common.HeaderMutation.SetHeaders, length)
	}
	if r.Replace {
		common.BodyMutation = &extproc.BodyMutation{Mutation: &extproc.BodyMutation_Body{Body: r.Chunk}}
	}
	if r.Duplex {
		common.BodyMutation = &extproc.BodyMutation{Mutation: &extproc.BodyMutation_StreamedResponse{
			StreamedResponse: &extproc.StreamedBodyResponse{Body: r.Chunk, EndOfStream: r.End},
		}}
	}
	putIn(out, r.Kind, common)
	return out
}

// putIn puts the common part where the kind has it.
func putIn(out *extproc.ProcessingResponse, k Kind, common *extproc.CommonResponse) {
	switch k {
	case RequestHeaders:
		out.Response = &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{Response: common}}
	case RequestBody:
		out.Response = &extproc.ProcessingResponse_RequestBody{RequestBody: &extproc.BodyResponse{Response: common}}
	case ResponseHeaders:
		out.Response = &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{Response: common}}
	case ResponseBody:
		out.Response = &extproc.ProcessingResponse_ResponseBody{ResponseBody: &extproc.BodyResponse{Response: common}}
	case ResponseTrailers:
		out.Response = &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{HeaderMutation: common.HeaderMutation}}
	}
}

func decisionHeaders(d *Decision, hosts string) []*core.HeaderValueOption {
	const set = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	hs := make([]*core.HeaderValueOption, 0, 4)
	hs = append(hs,
		option(wire.DestinationHeader, hosts, set),
		option(wire.ModelHeader, d.Model, set),
		option(wire.RetriesHeader, strconv.Itoa(d.Retries), set))
	if d.Request != 0 {
		hs = append(hs, option(wire.RequestHeader, strconv.FormatUint(d.Request, 16), set))
	}
	if len(d.Chain) > 0 {
		var all []string
		for _, l := range d.Chain {
			all = append(all, fmt.Sprintf("%016x.%d", uint64(l.Key), l.Tokens))
		}
		hs = append(hs, option(wire.PrefixHeader, strings.Join(all, ","), set))
	}
	if d.Ranked {
		hs = append(hs, option(wire.PriorityHeader, d.Priority, set))
	}
	if d.Hedge.After > 0 {
		hs = append(hs, option(wire.PerTryHeader, strconv.FormatInt(d.Hedge.After.Milliseconds(), 10), set), option(wire.HedgeHeader, "true", set))
	}
	if d.Exact {
		hs = append(hs, option(wire.PromptTokensHeader, strconv.Itoa(d.PromptTokens), set))
	}
	return hs
}

// observedMetadata is facts for the access log.
func observedMetadata(n *Observed) *structpb.Struct {
	own := map[string]*structpb.Value{}
	for key, v := range map[string]int{"prompt_tokens": n.Prompt, "cached_tokens": n.Cached, "output_tokens": n.Output} {
		if v >= 0 {
			own[key] = structpb.NewNumberValue(float64(v))
		}
	}
	if n.Charged != flow.Unanswered {
		own["charged_by"] = structpb.NewStringValue(n.Charged.String())
	}
	if n.First >= 0 {
		own["ttft_ms"] = structpb.NewNumberValue(float64(n.First.Milliseconds()))
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{wire.FactsNamespace: structpb.NewStructValue(&structpb.Struct{Fields: own})}}
}

// decisionMetadata is the list for override_host, and facts for the access log.
func decisionMetadata(d *Decision, hosts string) *structpb.Struct {
	own := map[string]*structpb.Value{
		"model":                  structpb.NewStringValue(d.Model),
		"session":                structpb.NewStringValue(d.Session),
		"decision":               structpb.NewStringValue(string(d.appendText(nil))),
		"expected_cached_tokens": structpb.NewNumberValue(float64(d.Choice.List[0].Cached)),
		"expected_output_tokens": structpb.NewNumberValue(float64(d.OutputTokens)),
		"priority":               structpb.NewStringValue(d.Priority),
	}
	if prompt := structpb.NewNumberValue(float64(d.PromptTokens)); d.Exact {
		own["prompt_tokens"] = prompt
	} else {
		own["expected_prompt_tokens"] = prompt
	}
	if d.Charged != flow.Unanswered {
		own["charged_by"], own["reserved_tokens"] = structpb.NewStringValue(d.Charged.String()), structpb.NewNumberValue(float64(d.Reserved))
	}
	if d.Asked != "" {
		own["asked"] = structpb.NewStringValue(d.Asked)
	}
	lb := map[string]*structpb.Value{wire.DestinationHeader: structpb.NewStringValue(hosts)}
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		wire.LBNamespace:    structpb.NewStructValue(&structpb.Struct{Fields: lb}),
		wire.FactsNamespace: structpb.NewStructValue(&structpb.Struct{Fields: own}),
	}}
}
