package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace.dev/millrace/extproc/internal/pool"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/regular"
)

// What the reference pickers' own defaults are. They hold where their flags name the pool.
const (
	referencePort    = 9002
	referenceHealth  = 9003
	referenceMetrics = 9090
	referenceDrain   = 30 * time.Second
	defaultNamespace = "default"
)

// reference is what the flags say that the reference pickers of the inference extension
// and of llm-d have: their charts can start extproc as they start their own.
type reference struct {
	flags *program.Flags

	poolName, poolNamespace, poolGroup string
	selector, selectorPorts            string
	grpcPort, healthPort, metricsPort  int
	certPath, configFile               string
	tracing                            bool
	drain                              time.Duration
	metricsScheme, metricsPath         string
	metricsServerPort                  int

	fixed   []inventory.Pool // of the selector
	plugins plugins
}

// plugins is what their file of plugins says that we do, too.
type plugins struct {
	eventsPort int      // where Pods publish events of their KV caches; 0: not said
	unused     []string // names of those that mean nothing here
}

// noEffect are their flags without effect here, true if they may stand without a value:
// extproc does as well without, or always does so.
var noEffect = map[string]bool{
	"ha-enable-leader-election": true, "disable-endpoint-subset-filter": true, "emit-endpoint-scores": true,
	"health-checking": true, "enable-pprof": true, "enable-cert-reload": true, "enable-grpc-stream-metrics": true,
	"allow-experimental-plugins": true, "metrics-endpoint-auth": true, "zap-devel": true,
	"model-server-metrics-https-insecure-skip-verify": true,
	"v": false, "zap-encoder": false, "zap-log-level": false, "zap-stacktrace-level": false, "zap-time-encoding": false,
	"refresh-metrics-interval": false, "refresh-prometheus-metrics-interval": false, "metrics-staleness-threshold": false,
	"total-queued-requests-metric": false, "total-running-requests-metric": false, "kv-cache-usage-percentage-metric": false,
	"lora-info-metric": false, "cache-info-metric": false, "config-text": false,
	"grpc-max-recv-msg-size": false, "grpc-max-send-msg-size": false, "tls-min-version": false, "tls-cipher-suites": false,
	"metrics-client-ca-file": false, "metrics-cert-dir": false,
}

// quiet are those of noEffect whose values change nothing that anybody would miss: the
// charts always give them.
var quiet = []string{"v", "zap-encoder", "zap-devel", "enable-pprof", "health-checking", "enable-cert-reload"}

// taken is a flag that is taken, and has no effect.
type taken struct{ alone bool }

func (t taken) Set(string) error { return nil }
func (t taken) String() string   { return "" }

// IsBoolFlag is whether it may stand without a value.
func (t taken) IsBoolFlag() bool { return t.alone }

func (r *reference) add(f *program.Flags) {
	r.flags = f
	const of = "for charts of other endpoint pickers: "
	f.StringVar(&r.poolName, "pool-name", "", of+"`name` of the InferencePool; their ports and TLS are then the defaults")
	f.StringVar(&r.poolNamespace, "pool-namespace", "", of+"`namespace` of it; none: that of $NAMESPACE, else default")
	f.StringVar(&r.poolGroup, "pool-group", "", of+"the only API `group` whose pools count; none: all that have InferencePools")
	f.StringVar(&r.selector, "endpoint-selector", "", of+"`key=value,…` that Pods have, where there is no InferencePool")
	f.StringVar(&r.selectorPorts, "endpoint-target-ports", "", of+"`port,…` of such Pods")
	f.IntVar(&r.grpcPort, "grpc-port", referencePort, of+"`port` of the external processor, on all addresses")
	f.IntVar(&r.healthPort, "grpc-health-port", referenceHealth, of+"`port` of gRPC health, in plain text, on all addresses")
	f.IntVar(&r.metricsPort, "metrics-port", referenceMetrics, of+"`port` of /metrics, /healthz and /readyz, on all addresses")
	f.StringVar(&r.certPath, "cert-path", "", of+"`folder` with tls.crt and tls.key; none: a certificate of its own making")
	f.StringVar(&r.configFile, "config-file", "", of+"`file` of plugins; of these only where KV events come from counts, the others are named in a warning")
	f.BoolVar(&r.tracing, "tracing", false, of+"send spans to $OTEL_EXPORTER_OTLP_ENDPOINT")
	f.DurationVar(&r.drain, "drain-timeout", referenceDrain, of+"how long streams in flight may continue when extproc is to end")
	f.StringVar(&r.metricsScheme, "model-server-metrics-scheme", "http", of+"`scheme` of engines' metrics")
	f.StringVar(&r.metricsPath, "model-server-metrics-path", "", of+"`path` of engines' metrics; none: where their kind has them")
	f.IntVar(&r.metricsServerPort, "model-server-metrics-port", 0, of+"`port` of engines' metrics; 0: that of their API, or where their kind has them")
	for name, alone := range noEffect {
		f.Var(taken{alone}, name, of+"accepted and ignored")
	}
}

// names reports whether these flags say whose endpoints are picked.
func (r *reference) names() bool { return r.poolName != "" || r.selector != "" }

// validate returns what is wrong with the flags, and makes them ours.
func (r *reference) validate(o *options) error {
	if !r.names() {
		return r.ports(o)
	}
	if len(o.pools) > 0 || r.poolName != "" && r.selector != "" {
		return errors.New("-pool, -pool-name, -endpoint-selector; give one of them only")
	}
	namespace := r.poolNamespace
	if namespace == "" {
		namespace = os.Getenv("NAMESPACE")
	}
	if namespace == "" {
		namespace = defaultNamespace
	}
	name := r.poolName
	if r.selector != "" {
		fixed, err := selected(namespace, r.selector, r.selectorPorts)
		if err != nil {
			return err
		}
		r.fixed, name = []inventory.Pool{fixed}, fixed.Name
	}
	names, err := pool.ParseNames(namespace + "/" + name)
	if err != nil {
		return fmt.Errorf("-pool-name: %w", err)
	}
	o.pools = names
	if !o.flags.Given("secure-serving") {
		o.secure.Self = true
	}
	return errors.Join(r.ports(o), r.read(), r.trace(o))
}

// ports makes their ports and certificates ours. Where their flags name the pool they hold
// by default, else where they are given.
func (r *reference) ports(o *options) error {
	ours := []struct {
		theirs, ours string
		port         int
		to           *string
	}{
		{"grpc-port", "listen", r.grpcPort, &o.listen},
		{"grpc-health-port", "health", r.healthPort, &o.health},
		{"metrics-port", "probes", r.metricsPort, nil},
	}
	for _, p := range ours {
		if p.port < 1 || p.port > 65535 {
			return fmt.Errorf("-%s: %d; must be 1 to 65535", p.theirs, p.port)
		}
		if o.flags.Given(p.ours) || !r.names() && !o.flags.Given(p.theirs) {
			continue
		}
		address := net.JoinHostPort("0.0.0.0", strconv.Itoa(p.port))
		if p.to != nil {
			*p.to = address
		} else if err := o.flags.Set(p.ours, address); err != nil {
			return err
		}
	}
	if r.names() && !o.secure.Self {
		_ = o.flags.Set("insecure", "true") // -secure-serving=false says so
	}
	if r.certPath != "" && o.secure.Self {
		o.secure.Cert, o.secure.Key, o.secure.Self = filepath.Join(r.certPath, "tls.crt"), filepath.Join(r.certPath, "tls.key"), false
	}
	return nil
}

// selected returns the pool that a selector and ports make.
func selected(namespace, selector, ports string) (inventory.Pool, error) {
	p := inventory.Pool{Namespace: namespace, Name: "endpoint-selector", Selector: map[string]string{}}
	for part := range strings.SplitSeq(selector, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok || key == "" || strings.ContainsAny(value, "=!") {
			return p, fmt.Errorf("-endpoint-selector: %q; must be key=value, and commas between several", part)
		}
		p.Selector[key] = value
	}
	for part := range strings.SplitSeq(ports, ",") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || n == 0 {
			return p, fmt.Errorf("-endpoint-target-ports: %q; must be 1 to 8 ports, and commas between them", part)
		}
		if !slices.Contains(p.Ports, int(n)) {
			p.Ports = append(p.Ports, int(n))
		}
	}
	if len(p.Ports) > 8 {
		return p, fmt.Errorf("-endpoint-target-ports: %d ports; must be ≤ 8", len(p.Ports))
	}
	return p, nil
}

// trace has spans sent where the variables of OpenTelemetry say.
func (r *reference) trace(o *options) error {
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	if !r.tracing || o.traces != "" || endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return fmt.Errorf("$OTEL_EXPORTER_OTLP_ENDPOINT: %q; must be a URL such as http://collector:4317", endpoint)
	}
	o.traces = "otlp://" + u.Host
	return nil
}

// pages returns where an endpoint's metrics are; nil: where its kind has them.
func (r *reference) pages(address string) []string {
	if r.metricsPath == "" && r.metricsServerPort == 0 && r.metricsScheme != "https" {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil
	}
	if r.metricsServerPort != 0 {
		at = netip.AddrPortFrom(at.Addr(), uint16(r.metricsServerPort))
	}
	path := "/" + strings.TrimPrefix(strings.Trim(r.metricsPath, `"`), "/")
	if path == "/" {
		path = "/metrics"
	}
	return []string{r.metricsScheme + "://" + at.String() + path}
}

// notes returns what the command line says that has no effect.
func (r *reference) notes() (flags, plugins []string) {
	for name := range noEffect {
		if r.flags.Given(name) && !slices.Contains(quiet, name) {
			flags = append(flags, "-"+name)
		}
	}
	slices.Sort(flags)
	return flags, r.plugins.unused
}

// read reads the file of plugins. What of it can't be read is not for us.
func (r *reference) read() error {
	if r.configFile == "" {
		return nil
	}
	text, err := regular.Read(r.configFile, 1<<20)
	if err != nil {
		return fmt.Errorf("-config-file: %w", err)
	}
	r.plugins, err = readPlugins(text)
	if err != nil {
		return fmt.Errorf("-config-file %s: %w", r.configFile, err)
	}
	return nil
}

// ours are plugins whose work extproc does in its own way.
var ours = []string{
	"queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer", "precise-prefix-cache-scorer", "lora-affinity-scorer",
	"running-requests-size-scorer", "load-aware-scorer", "session-affinity-scorer", "max-score-picker", "weighted-random-picker",
	"single-profile-handler", "metrics-data-source", "core-metrics-extractor", "openai-parser", "passthrough-parser",
}

// readPlugins reads the text of an EndpointPickerConfig.
func readPlugins(text []byte) (p plugins, err error) {
	var file struct {
		Kind    string `yaml:"kind"`
		Plugins []struct {
			Name       string         `yaml:"name"`
			Type       string         `yaml:"type"`
			Parameters map[string]any `yaml:"parameters"`
		} `yaml:"plugins"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return p, err
	}
	if file.Kind != "" && file.Kind != "EndpointPickerConfig" {
		return p, fmt.Errorf("kind %q; must be EndpointPickerConfig (Millrace's own Policy is for -config)", file.Kind)
	}
	for _, one := range file.Plugins {
		if events, ok := one.Parameters["kvEventsConfig"].(map[string]any); ok {
			p.eventsPort = eventsPortOf(events)
		}
		if !slices.Contains(ours, one.Type) && one.Type != "" {
			p.unused = append(p.unused, one.Type)
		}
	}
	return p, nil
}

// eventsPortOf returns the port where Pods publish by a kvEventsConfig; 0: they do not.
func eventsPortOf(c map[string]any) int {
	const usual = 5557
	if discover, ok := c["discoverPods"].(bool); ok && !discover {
		return 0
	}
	found, _ := c["podDiscoveryConfig"].(map[string]any)
	port, ok := found["socketPort"].(int)
	if !ok || port < 1 || port > 65535 {
		return usual
	}
	return port
}
