package config

import "millrace.dev/millrace/internal/scrape"

// KVEvents is where an engine's events about its KV cache come from: vLLM run with
// --kv-events-config. One of Connect and Listen is set.
type KVEvents struct {
	// Connect is the "ip:port" at which the engine's publisher listens: where its own
	// configuration has a "*" in the endpoint.
	// +millrace:address:words="must be ip:port of one host, without tcp://: not unspecified, link-local, multicast or reserved, nor IPv4 written as IPv6",optional=true,host=true
	Connect string `json:"connect,omitempty"`
	// Listen is the "ip:port" at which extproc, or xds for Endpoints, listens and to which the publisher
	// connects: what stands in the endpoint of the engine's configuration otherwise.
	// Anybody who reaches it is believed.
	// +millrace:address:words="must be ip:port, without tcp://",optional=true
	Listen string `json:"listen,omitempty"`
	// Topic is what the engine's configuration says. Default: empty.
	// +kubebuilder:validation:MaxLength=200
	Topic string `json:"topic,omitempty"`
}

// maxTopic bounds a topic, in characters.
const maxTopic = 200

// validate returns the rules that the setting of an endpoint of a type breaks.
func (k KVEvents) validate(at, typ string, r *rules) {
	if k == (KVEvents{}) {
		return
	}
	switch {
	case !scrape.Named(typ).Events():
		r.broken(at, "an endpoint of type %s has none that we know: set type: vllm, or leave this out", typ)
	case k.Connect == "" && k.Listen == "":
		r.broken(at, "neither connect nor listen; must be one of them: connect where the engine's endpoint has a *, else listen")
	case k.Connect != "" && k.Listen != "":
		r.broken(at, "connect and listen; must be one of them: connect where the engine's endpoint has a *, else listen")
	}
	if k.Connect != "" && !isHost(k.Connect) {
		r.broken(at+".connect", "%.80q; must be ip:port of one host, without tcp://: not unspecified, link-local, multicast or reserved, nor IPv4 written as IPv6", k.Connect)
	}
	if k.Listen != "" && !isAddress(k.Listen) {
		r.broken(at+".listen", "%.80q; must be ip:port, without tcp://", k.Listen)
	}
	r.short(at+".topic", k.Topic, maxTopic)
}
