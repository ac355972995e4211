package translate

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"millrace.dev/millrace/internal/config"
)

// corsFilter is the name of the filter, by which the virtual host says what it lets.
const corsFilter = "envoy.filters.http.cors"

// asking returns the route of what a browser asks before it asks: none is ever forwarded, but
// the filter answers on routes that lead somewhere only.
func asking(c config.CORS) []*routev3.Route {
	if len(c.Origins) == 0 {
		return nil
	}
	m := prefix("/")()
	m.Headers = []*routev3.HeaderMatcher{exactly(":method", "OPTIONS")}
	for _, h := range []string{"origin", "access-control-request-method"} {
		m.Headers = append(m.Headers, &routev3.HeaderMatcher{Name: h, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})
	}
	return []*routev3.Route{{Match: m, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "browsers"}, // there is none
	}}}}
}

// readable lets pages read what Envoy answers itself, too, for which the filter does nothing: in
// front of each such route is one for the pages alone.
func readable(c config.CORS, routes []*routev3.Route) []*routev3.Route {
	if len(c.Origins) == 0 {
		return routes
	}
	page := &routev3.HeaderMatcher{Name: "origin", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if !slices.Contains(c.Origins, "*") {
		each := make([]string, len(c.Origins))
		for i, o := range c.Origins {
			each[i] = regexp.QuoteMeta(o)
		}
		page.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: strings.Join(each, "|")}},
		}}
	}
	var all []*routev3.Route
	for _, r := range routes {
		if r.GetDirectResponse() != nil {
			own := proto.Clone(r).(*routev3.Route)
			own.Match.Headers = append(own.Match.Headers, page)
			own.ResponseHeadersToAdd = append(own.ResponseHeadersToAdd,
				set("access-control-allow-origin", "%REQ(ORIGIN)%"), set("access-control-expose-headers", "*"), set("vary", "origin"))
			all = append(all, own)
		}
		all = append(all, r)
	}
	return all
}

// browsers lets the pages of some origins ask from a browser. Where there are none, a
// browser's question is a request like any other.
//
// "*" of headers is every header but authorization, which has to be named (Fetch, "CORS
// protocol and credentials"). Cookies are not sent by such pages: whoever wants one session
// names it in the header.
func browsers(c config.CORS) map[string]*anypb.Any {
	if len(c.Origins) == 0 {
		return nil
	}
	p := &corsv3.CorsPolicy{
		AllowMethods:  "GET, POST, DELETE, OPTIONS",
		AllowHeaders:  "authorization, *",
		ExposeHeaders: "*",
		MaxAge:        strconv.Itoa(int(c.MaxAge.Seconds())),
		// What is asked before is answered here in any case, also to a page that may not.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	for _, o := range c.Origins {
		p.AllowOriginStringMatch = append(p.AllowOriginStringMatch, &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}, // what matches "*" matches any
		})
	}
	return map[string]*anypb.Any{corsFilter: pack(p)}
}
