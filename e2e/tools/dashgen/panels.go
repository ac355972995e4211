package main

// of is the model that the user of a dashboard chose.
const of = `model=~"$model"`

// span is the time that rates are of: what Grafana finds right for the picture's width.
const span = "[$__rate_interval]"

// rate is the sum of a counter's rate, by labels.
func rate(by, counter string) string { return "sum by (" + by + ") (rate(" + counter + span + "))" }

// quantile is a quantile of a histogram, by labels.
func quantile(q, by, histogram string) string {
	if by != "" {
		by = ", " + by
	}
	return "histogram_quantile(" + q + ", sum by (le" + by + ") (rate(" + histogram + span + ")))"
}

// gateway is what Envoy counts at the public address.
const gateway = `envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="gateway"`

var boards = []board{overview, routing, nodes, control, capacity}

var overview = board{"overview", "overview", "Is it well, and who is hurt? Begin here.", []row{
	{"Is it well?", []panel{
		{number, "Programs out of reach", "Programs that Prometheus can't scrape; 0 is well. `millrace status` has the cause.", "none", never,
			[]series{{`sum(up == bool 0)`, ""}}},
		{number, "Nodes not ready", "0 is well. `millrace status` has the reason of each.", "none", never,
			[]series{{`sum(max by (state) (millrace_xds_nodes{state!="ready"}))`, ""}}},
		{number, "Replicas not ready", "0 is well. `millrace status` has the reason of each.", "none", never,
			[]series{{`sum(max by (state) (millrace_xds_endpoints{state!="ready"}))`, ""}}},
		{number, "Requests that failed", "Share of the requests at the public address that were answered with 5xx.", "percentunit", never,
			[]series{{"sum(rate(" + gateway + `, envoy_response_code_class="5"}` + span + ")) / sum(rate(" + gateway + "}" + span + "))", ""}}},
		{lines, "Requests by outcome", "`refused`: the engine answered 4xx. `failed`: 5xx after all retries. `shed`: extproc answered with an error. `gone`: the client left.", "reqps", never,
			[]series{{rate("outcome", "millrace_extproc_requests_total{"+of+"}"), "{{outcome}}"}}},
		{lines, "Error budget burnt", "How many times faster than allowed errors come, for an objective of 99.9 %: 1 uses it up in 30 days, 14.4 in two days.", "none", never,
			[]series{{"millrace:errors:ratio_rate5m / 0.001", "5 minutes"}, {"millrace:errors:ratio_rate1h / 0.001", "1 hour"}}},
	}},
	{"Who is hurt?", []panel{
		{lines, "Requests without a good answer", "By model, priority and outcome.", "reqps", whenWell,
			[]series{{rate("model, priority, outcome", `millrace_extproc_requests_total{`+of+`, outcome!="ok"}`) + " > 0", "{{model}} {{priority}} {{outcome}}"}}},
		{lines, "Tenants without good answers", "The 20 that use most have a name here, all others are `other`.", "reqps", whenWell,
			[]series{{rate("tenant, outcome", `millrace_extproc_tenant_requests_total{outcome!="ok"}`) + " > 0", "{{tenant}} {{outcome}}"}}},
		{lines, "Over budget", "Requests that were refused because their tenant has used up its budget.", "reqps", whenWell,
			[]series{{rate("what", "millrace_extproc_over_budget_total") + " > 0", "{{what}}"}}},
		{lines, "Refused while all engines are busy", "By reason: more replicas, or a smaller load, is the way out.", "reqps", whenWell,
			[]series{{rate("model, reason", "millrace_extproc_sheds_total{"+of+"}") + " > 0", "{{model}} {{reason}}"}}},
		{lines, "Time to first token", "Of streams of our engines, from the request's arrival.", "s", never,
			[]series{{quantile("0.5", "model", "millrace_extproc_first_token_seconds_bucket{"+of+"}"), "{{model}} half"}, {quantile("0.95", "model", "millrace_extproc_first_token_seconds_bucket{"+of+"}"), "{{model}} 95 %"}}},
		{lines, "Time of answers", "From the request's arrival to the answer's end.", "s", never,
			[]series{{quantile("0.5", "model", "millrace_extproc_request_seconds_bucket{"+of+"}"), "{{model}} half"}, {quantile("0.95", "model", "millrace_extproc_request_seconds_bucket{"+of+"}"), "{{model}} 95 %"}}},
	}},
	{"How much is done?", []panel{
		{lines, "Tokens", "Prompt tokens as engines count them, those of them that were found in a cache, and generated ones.", "none", never,
			[]series{{rate("model", "millrace_extproc_prompt_tokens_total{"+of+"}"), "{{model}} prompts"}, {rate("model", "millrace_extproc_cached_tokens_total{"+of+"}"), "{{model}} cached"}, {rate("model", "millrace_extproc_output_tokens_total{"+of+"}"), "{{model}} output"}}},
		{lines, "Tokens by tenant", "Of prompts and answers, per second.", "none", never,
			[]series{{rate("tenant", "millrace_extproc_tenant_tokens_total"), "{{tenant}}"}}},
	}},
}}

var routing = board{"routing", "routing", "Why do requests go where they go, and was it right?", []row{
	{"Where do they go?", []panel{
		{lines, "Requests by engine", "Good answers per second.", "reqps", never,
			[]series{{rate("endpoint, replica", "millrace_extproc_endpoint_request_seconds_count"), "{{replica}} {{endpoint}}"}}},
		{lines, "Why the first engine was chosen", "`moved` are conversations that left their cache.", "reqps", never,
			[]series{{rate("reason", "millrace_extproc_picks_total"), "{{reason}}"}}},
		{lines, "Share of the busiest engine", "Of the requests to a model's engines; even load is 1 ÷ their number.", "percentunit", never,
			[]series{{"max by (model) (millrace_extproc_top_endpoint_share{" + of + "})", "{{model}}"}}},
		{lines, "In flight by engine", "Requests of all extprocs now at each engine.", "none", never,
			[]series{{"sum by (endpoint, replica) (millrace_extproc_endpoint_requests_in_flight)", "{{replica}} {{endpoint}}"}}},
	}},
	{"Was it right?", []panel{
		{lines, "Seen ÷ predicted time", "1 is right. `real`: with the answer's real length, which shows how well engines' speeds are known; `expected`: with the length that was expected.", "none", never,
			[]series{{rate("length", "millrace_extproc_seen_by_predicted_ratio_sum") + " / " + rate("length", "millrace_extproc_seen_by_predicted_ratio_count"), "{{length}} length"}}},
		{lines, "Error of predicted time", "Difference ÷ observed time.", "percentunit", never,
			[]series{{quantile("0.5", "", "millrace_extproc_prediction_error_ratio_bucket"), "half"}, {quantile("0.9", "", "millrace_extproc_prediction_error_ratio_bucket"), "90 %"}}},
		{lines, "Cached share of prompts", "Found in caches by engines, and expected by extproc when it decided. Far apart: caches are smaller than reported, or others use them.", "percentunit", never,
			[]series{{rate("model", "millrace_extproc_cached_tokens_total{"+of+"}") + " / " + rate("model", "millrace_extproc_prompt_tokens_total{"+of+"}"), "{{model}} found"}, {rate("model", "millrace_extproc_expected_cached_tokens_total{"+of+"}") + " / " + rate("model", "millrace_extproc_prompt_tokens_total{"+of+"}"), "{{model}} expected"}}},
		{lines, "Cached share by engine", "Found in caches.", "percentunit", never,
			[]series{{rate("endpoint, replica", "millrace_extproc_endpoint_cached_tokens_total") + " / " + rate("endpoint, replica", "millrace_extproc_endpoint_prompt_tokens_total"), "{{replica}} {{endpoint}}"}}},
	}},
	{"Which engine is slow, or fails?", []panel{
		{bars, "Speed of one answer", "Output tokens per second, as clients see them.", "none", never,
			[]series{{"sort(" + rate("endpoint, replica", "millrace_extproc_endpoint_output_tokens_total") + " / " + rate("endpoint, replica", "millrace_extproc_endpoint_decode_seconds_total") + " > 0)", "{{replica}} {{endpoint}}"}}},
		{bars, "Mean time to first token", "Of streams, by engine.", "s", never,
			[]series{{rate("endpoint, replica", "millrace_extproc_endpoint_first_token_seconds_sum") + " / " + rate("endpoint, replica", "millrace_extproc_endpoint_first_token_seconds_count"), "{{replica}} {{endpoint}}"}}},
		{lines, "Failed attempts", "By engine, also where a retry elsewhere succeeded. The engine's log has the cause.", "reqps", whenWell,
			[]series{{rate("endpoint, replica", "millrace_extproc_endpoint_failures_total") + " > 0", "{{replica}} {{endpoint}}"}}},
		{lines, "Ejections", "Times per second that an engine was left out for failing.", "none", whenWell,
			[]series{{"sum(rate(millrace_extproc_ejections_total" + span + ")) > 0", "ejections"}}},
	}},
	{"What does deciding cost?", []panel{
		{lines, "Time of a decision", "From the message that completes a request.", "s", never,
			[]series{{quantile("0.5", "", "millrace_extproc_decision_seconds_bucket"), "half"}, {quantile("0.99", "", "millrace_extproc_decision_seconds_bucket"), "99 %"}}},
		{lines, "Its parts", "Mean, of one decision in 16.", "s", never,
			[]series{{rate("phase", "millrace_extproc_decision_phase_seconds_sum") + " / " + rate("phase", "millrace_extproc_decision_phase_seconds_count"), "{{phase}}"}}},
	}},
}}

var nodes = board{"nodes", "nodes and GPUs", "What do machines and engines do?", []row{
	{"Nodes", []panel{
		{lines, "CPU", "Share of the host's time in use.", "percentunit", never,
			[]series{{"millrace_nodeagent_cpu_utilization_ratio", "{{instance}}"}}},
		{lines, "Memory", "Share of what the node may use.", "percentunit", never,
			[]series{{"millrace_nodeagent_memory_used_bytes / millrace_nodeagent_memory_total_bytes", "{{instance}}"}}},
		{lines, "Nodes without xds", "Their weights fall until they report again.", "none", whenWell,
			[]series{{"millrace_nodeagent_xds_connected == 0", "{{instance}}"}}},
		{lines, "Engines not ready", "1 for the state of each.", "none", whenWell,
			[]series{{`millrace_nodeagent_engine_state{state!="READY"} == 1`, "{{instance}} {{state}}"}}},
	}},
	{"Engines", []panel{
		{lines, "Measured speed", "Tokens per second of one sequence, by phase.", "none", never,
			[]series{{"millrace_engine_speed_tokens_per_second", "{{instance}} {{phase}}"}}},
		{lines, "Tokens in caches", "Known to be in each engine's KV cache.", "none", never,
			[]series{{"millrace_engine_in_cache_tokens", "{{instance}}"}}},
		{lines, "Requests that a backend may have", "What the goal of the model allows, at most its slots.", "none", never,
			[]series{{"millrace_engine_concurrency_limit", "{{instance}} {{model_name}}"}}},
		{lines, "Restarts", "Per second, of backends and shards. The engine's log has why they ended.", "none", whenWell,
			[]series{{"sum by (instance, role) (rate(millrace_engine_restarts_total" + span + ")) > 0", "{{instance}} {{role}}"}}},
	}},
	{"GPUs", []panel{
		{lines, "Utilization", "Share of time in which a kernel ran.", "percentunit", noGPU,
			[]series{{"millrace_nodeagent_gpu_utilization_ratio", "{{instance}} {{name}} {{uuid}}"}}},
		{lines, "Memory", "Share in use.", "percentunit", noGPU,
			[]series{{"millrace_nodeagent_gpu_memory_used_bytes / millrace_nodeagent_gpu_memory_total_bytes", "{{instance}} {{name}} {{uuid}}"}}},
		{lines, "Clock", "SM clock as a share of its maximum: a fall under load is throttling.", "percentunit", noGPU,
			[]series{{"millrace_nodeagent_gpu_sm_clock_ratio", "{{instance}} {{name}} {{uuid}}"}}},
		{lines, "Temperature", "Of the GPU.", "celsius", noGPU,
			[]series{{"millrace_nodeagent_gpu_temperature_celsius", "{{instance}} {{name}} {{uuid}}"}}},
		{lines, "Power", "Drawn now.", "watt", noGPU,
			[]series{{"millrace_nodeagent_gpu_power_watts", "{{instance}} {{name}} {{uuid}}"}}},
		{lines, "Lost, or with uncorrected errors", "A lost GPU needs its node reset; one with uncorrected ECC errors is to be replaced soon.", "none", whenWell,
			[]series{{"millrace_nodeagent_gpu_lost == 1", "{{instance}} {{uuid}} lost"}, {"millrace_nodeagent_gpu_ecc_uncorrected_errors > 0", "{{instance}} {{uuid}} errors"}}},
	}},
	{"Our programs", []panel{
		{lines, "Memory against its limit", "Resident memory of each program ÷ what it keeps to.", "percentunit", never,
			[]series{{"process_resident_memory_bytes / on (instance) millrace_memory_limit_bytes", "{{instance}}"}}},
		{lines, "CPU", "Cores in use.", "none", never,
			[]series{{"sum by (instance) (rate(process_cpu_seconds_total" + span + "))", "{{instance}}"}}},
	}},
}}

var control = board{"control", "control plane", "Does what xds decides arrive?", []row{
	{"xds", []panel{
		{lines, "Nodes by state", "", "none", never, []series{{"max by (state) (millrace_xds_nodes)", "{{state}}"}}},
		{lines, "Replicas by state", "", "none", never, []series{{"max by (state) (millrace_xds_endpoints)", "{{state}}"}}},
		{lines, "Clients", "Envoys and extprocs that follow each xds.", "none", never, []series{{"millrace_xds_clients", "{{instance}}"}}},
		{lines, "Reports", "Of nodes, per second.", "none", never, []series{{"sum(rate(millrace_xds_reports_total" + span + "))", "accepted"}, {"sum(rate(millrace_xds_reports_refused_total" + span + "))", "refused"}}},
	}},
	{"Pushes", []panel{
		{lines, "Pushes", "Per second, by type of resource.", "none", never, []series{{rate("type", "millrace_xds_pushes_total"), "{{type}}"}}},
		{lines, "Time until a client has one", "99 of 100, until it accepts or refuses.", "s", never, []series{{quantile("0.99", "", "millrace_xds_push_seconds_bucket"), "99 %"}}},
		{lines, "Refused by clients", "A client that refuses keeps what it had: xds' log has the reason.", "none", never, []series{{"sum(rate(millrace_xds_nacks_total" + span + "))", "refused"}}},
		{lines, "Extprocs without xds", "They go by the last state that they have.", "none", whenWell, []series{{"millrace_extproc_xds_connected == 0", "{{instance}}"}}},
	}},
}}

var capacity = board{"capacity", "capacity and scaling", "Is there enough, and for how long?", []row{
	{"Demand", []panel{
		{lines, "Requests", "Per second, by model and priority.", "reqps", never, []series{{rate("model, priority", "millrace_extproc_requests_total{"+of+"}"), "{{model}} {{priority}}"}}},
		{lines, "Tokens in flight", "That requests in flight are expected to need.", "none", never, []series{{"sum(millrace_extproc_tokens_in_flight)", "tokens"}}},
		{lines, "Waiting requests", "By model and priority: all engines of the model are busy.", "none", whenWell, []series{{"max by (model, priority) (max_over_time(millrace_extproc_queue_requests{" + of + "}" + span + ")) > 0", "{{model}} {{priority}}"}}},
		{lines, "Time of waiting", "95 of 100 that waited.", "s", whenWell, []series{{quantile("0.95", "model, priority", "millrace_extproc_queue_wait_seconds_bucket{"+of+"}") + " > 0", "{{model}} {{priority}}"}}},
	}},
	{"Replicas that follow demand", []panel{
		{lines, "Replicas", "Of models with `spec.scaling`: how many there are, those that drain included, and how many demand asks for.", "none", never,
			[]series{{"max by (model) (millrace_xds_scale_current_replicas{" + of + "})", "{{model}} there"}, {"max by (model) (millrace_xds_scale_desired_replicas{" + of + "})", "{{model}} desired"}}},
		{lines, "Demand", "Requests that arrive per second, answered or not.", "reqps", never,
			[]series{{"max by (model) (millrace_xds_scale_arrivals_per_second{" + of + "})", "{{model}}"}}},
		{lines, "Waiting", "Requests that wait, in extproc or in engines.", "none", never,
			[]series{{"max by (model) (millrace_xds_scale_queued_requests{" + of + "})", "{{model}}"}}},
		{lines, "Cost per hour", "Of all replicas, in the unit of `scaling.cost`.", "none", never,
			[]series{{"max by (model) (millrace_xds_scale_cost_per_hour{" + of + "})", "{{model}}"}}},
		{lines, "Fewer replicas than needed", "1: `maxReplicas`, the budget or free nodes are in the way. 0 is well. `millrace status` has the reason.", "none", never,
			[]series{{"max by (model) (millrace_xds_scale_limited{" + of + "})", "{{model}}"}}},
	}},
	{"Supply", []panel{
		{lines, "Places in use", "Requests in flight ÷ what backends may have at a time. At 1 requests wait.", "percentunit", never,
			[]series{{"sum(millrace_extproc_requests_in_flight) / sum(millrace_engine_concurrency_limit)", "all models"}}},
		{lines, "Output tokens", "Per second, by engine.", "none", never, []series{{rate("endpoint, replica", "millrace_extproc_endpoint_output_tokens_total"), "{{replica}} {{endpoint}}"}}},
		{lines, "Refused while all engines are busy", "By reason.", "reqps", whenWell, []series{{rate("model, reason", "millrace_extproc_sheds_total{"+of+"}") + " > 0", "{{model}} {{reason}}"}}},
		{lines, "Memory of tables", "Share of what the tables of a kind may take; one that is full drops its oldest.", "percentunit", never,
			[]series{{"millrace_memory_used_bytes / on (instance, part) (millrace_memory_bound_bytes > 0)", "{{instance}} {{part}}"}}},
	}},
}}
