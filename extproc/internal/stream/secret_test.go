package stream

import (
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
)

// TestKeysAreNotShown has tenants have the name of their header's value, but for headers that
// hold keys and the like.
func TestKeysAreNotShown(t *testing.T) {
	const value = "sk-1234"
	for header, shown := range map[string]bool{
		"": false, "authorization": false, "Authorization": false, "proxy-authorization": false, "x-original-authorization": false, "x-api-key": false, "api-key": false,
		"x-goog-api-key": false, "ocp-apim-subscription-key": false, "set-cookie2": false, "x-auth-token": false, "x-client-secret": false, "apikey": false,
		"x-tenant": true, "x-auth-request-user": true, "x-monkey": true, "x-keyboard": true,
	} {
		f := newFleet(1, oneSlot, func(t *pick.Table) { t.Policy.Flow.TenantHeader = strings.ToLower(header) })
		name := strings.ToLower(header)
		if name == "" {
			name = "x-api-key"
		}
		head := headOf(t, f, name, value)
		if got := head.TenantName; head.Tenant == 0 || (got == value) != shown || !shown && !strings.HasPrefix(got, "key ") {
			t.Errorf("%q: the tenant is shown as %q", header, got)
		}
	}
}

// TestKeysAreNotShownAfterTheirLikes has a key not take the name of another header's value of
// the same bytes, nor that one the key's.
func TestKeysAreNotShownAfterTheirLikes(t *testing.T) {
	const value = "sk-1234"
	f := newFleet(1, func(t *pick.Table) { t.Policy.Picker, t.Policy.Flow = true, &flow.Policy{} })
	x := f.core.Begin()
	defer f.core.Finish(x)
	x.in.names = f.core.names()
	for _, header := range []string{wire.FairnessHeader, "x-api-key", wire.FairnessHeader, "authorization"} {
		x.in.reset()
		x.in.Event = Event{Kind: RequestHeaders}
		x.in.requestHeader([]byte(header), []byte(value))
		if got := x.in.Request.TenantName; (got == value) != (header == wire.FairnessHeader) {
			t.Errorf("%s: the tenant is shown as %q", header, got)
		}
	}
}
