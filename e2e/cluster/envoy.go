package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
)

type object = map[string]any

// istioVersion is what Envoys say that they are of.
const istioVersion = "1.31.0"

// bootstrap returns what makes a stock Envoy one of Istio's, for pid1 to expand: with
// istiod for all but certificates, and the cluster's agent for those.
func bootstrap(id, cluster string, metadata object) string {
	metadata["CLUSTER_ID"], metadata["ISTIO_VERSION"] = "Kubernetes", istioVersion
	static := func(name, ip string, port int) object {
		return object{
			"name": name, "type": "STATIC", "connect_timeout": "2s",
			"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
				"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicit_http_config": object{"http2_protocol_options": object{}},
			}},
			"load_assignment": object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": []any{object{"endpoint": object{
				"address": object{"socket_address": object{"address": ip, "port_value": port}},
			}}}}}},
		}
	}
	ads := object{"ads": object{}, "resource_api_version": "V3"}
	return jsonOf(object{
		"node":  object{"id": id, "cluster": cluster, "metadata": metadata},
		"admin": object{"address": object{"socket_address": object{"address": "0.0.0.0", "port_value": 15000}}},
		"dynamic_resources": object{
			"ads_config": object{"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": []any{object{
				"envoy_grpc":       object{"cluster_name": "xds-grpc"},
				"initial_metadata": []any{object{"key": "authorization", "value": "Bearer ${file:/var/run/istio/token}"}},
			}}},
			"cds_config": ads, "lds_config": ads,
		},
		// What istiod has Envoys ask for certificates is called sds-grpc.
		"static_resources": object{"clusters": []any{static("xds-grpc", istiodIP, istiodPort), static("sds-grpc", agentIP, agentPort)}},
	})
}

// gatewayBootstrap is that of a gateway; what is in double braces istiod fills in.
func gatewayBootstrap() string {
	return bootstrap("router~${POD_IP}~${POD_NAME}.${NS}~${NS}.svc."+domain, "{{.DeploymentName}}.${NS}", object{
		"NAME": "${POD_NAME}", "NAMESPACE": "${NS}", "SERVICE_ACCOUNT": "{{.ServiceAccount}}",
		"LABELS": object{"gateway.networking.k8s.io/gateway-name": "{{.Name}}"},
	})
}

// Sidecar returns what Istio's injector would add to a Pod: the first of its
// initContainers, and a volume, as JSON. With interception REDIRECT somebody sends the Pod's
// connections to its Envoy, with NONE clients connect to it.
func Sidecar(account, interception string, labels map[string]string) (container, volume string) {
	env := func(name, field string) object {
		return object{"name": name, "valueFrom": object{"fieldRef": object{"fieldPath": field}}}
	}
	container = jsonOf(object{
		"name": "istio-proxy", "image": envoyImage, "imagePullPolicy": "Never", "restartPolicy": "Always",
		"args": []any{bootstrap("sidecar~${POD_IP}~${POD_NAME}.${NS}~${NS}.svc."+domain, "sidecar.${NS}", object{
			"NAME": "${POD_NAME}", "NAMESPACE": "${NS}", "SERVICE_ACCOUNT": account, "INTERCEPTION_MODE": interception, "LABELS": labels,
		})},
		"env":          []any{env("POD_IP", "status.podIP"), env("POD_NAME", "metadata.name"), env("NS", "metadata.namespace")},
		"startupProbe": object{"httpGet": object{"path": "/ready", "port": 15000}, "periodSeconds": 1, "failureThreshold": 60},
		"volumeMounts": []any{object{"name": "istio-token", "mountPath": "/var/run/istio"}},
	})
	volume = jsonOf(object{"name": "istio-token", "projected": object{"sources": []any{
		object{"serviceAccountToken": object{"audience": istioAudience, "path": "token", "expirationSeconds": 43200}},
	}}})
	return container, volume
}

// jsonOf returns a value of our own making as JSON.
func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cluster: %T: %v", v, err)) // made here
	}
	return string(b)
}

func hostPort(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }
