{{/* Names and labels. */}}
{{- define "millrace.fullname" -}}
{{- $name := default .Release.Name .Values.nameOverride -}}
{{- if contains "millrace" $name }}{{ $name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-millrace" ($name | trunc 31 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The metadata of a component's object: (list $ "xds"). */}}
{{- define "millrace.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "millrace.fullname" $ }}-{{ index . 1 }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "millrace.labels" $ | nindent 2 }}
  app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* matchLabels of a component: (list $ "xds"). */}}
{{- define "millrace.match" -}}
{{ include "millrace.selector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The metadata of a component's Pods: (list $ "xds"). */}}
{{- define "millrace.podMetadata" -}}
{{- $ := index . 0 -}}
{{- $v := index $.Values (index . 1) -}}
labels: {{- /* none that changes with the chart alone: it would restart them */}}
  {{- include "millrace.match" . | nindent 2 }}
  {{- with $.Values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $v.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $v.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image and pull policy of a program: (list $ "xds"). */}}
{{- define "millrace.image" -}}
{{- $ := index . 0 -}}
image: {{ printf "%s/%s:%s" $.Values.image.registry (index . 1) (default $.Chart.AppVersion $.Values.image.tag) }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
{{- end }}

{{/* What all Pods of a component have in common: (list $ "xds"). */}}
{{- define "millrace.pod" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $v := index $.Values $component -}}
serviceAccountName: {{ include "millrace.fullname" $ }}-{{ $component }}
enableServiceLinks: false
securityContext: {{- include "millrace.podSecurity" $ | nindent 2 }}
{{- with $.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.runAsUser) }}
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "millrace.security" -}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{/* Replicas on different nodes and zones, where there are several: (list $ "xds"). */}}
{{- define "millrace.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "millrace.match" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

{{/* Probes of the pages of -probes, at that port. */}}
{{- define "millrace.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- define "millrace.podIP" -}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
{{- end }}

{{/* The host name of a Service: (list $ "xds"). */}}
{{- define "millrace.host" -}}
{{ include "millrace.fullname" (index . 0) }}-{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc
{{- end }}

{{/* Identity: the sidecar, the volumes it needs, the flags of a program. */}}
{{- define "millrace.identity" -}}
{{- $ := index . 0 -}}
{{- $roles := index . 1 -}}
- name: identity
  {{- include "millrace.image" (list $ "millrace") | nindent 2 }}
  restartPolicy: Always
  args:
    - identity
    - -roles={{ $roles }}
    {{- if eq $roles "xds" }}
    - -ca-cert=/etc/millrace/ca/tls.crt
    - -ca-key=/etc/millrace/ca/tls.key
    {{- else }}
    - -authority=https://{{ include "millrace.host" (list $ "xds-replicas") }}:7102
    - -token=/var/run/secrets/millrace/token
    - -ca=/etc/millrace/ca/ca.crt
    {{- end }}
    - -out=/run/millrace/tls
  startupProbe:
    exec: {command: [millrace, identity, -check, "-roles={{ $roles }}", -out=/run/millrace/tls]}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 600
  resources: {{- toYaml $.Values.identity.resources | nindent 4 }}
  {{- include "millrace.security" $ | nindent 2 }}
  volumeMounts:
    - {name: tls, mountPath: /run/millrace/tls}
    - {name: ca, mountPath: /etc/millrace/ca, readOnly: true}
    {{- if ne $roles "xds" }}
    - {name: token, mountPath: /var/run/secrets/millrace, readOnly: true}
    {{- end }}
{{- end }}

{{- define "millrace.caSecret" -}}
{{ default (printf "%s-ca" (include "millrace.fullname" .)) .Values.ca.secret }}
{{- end }}

{{/* Whether Helm makes the authority. */}}
{{- define "millrace.ownCA" -}}
{{ if not (or .Values.ca.secret .Values.ca.certManager.enabled) }}yes{{ end }}
{{- end }}

{{- define "millrace.identityVolumes" -}}
{{- $ := index . 0 -}}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- if eq (index . 1) "xds" }}
- name: ca
  secret: {secretName: {{ include "millrace.caSecret" $ | quote }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- else }}
- name: ca
  {{- if include "millrace.ownCA" $ }}
  configMap: {name: {{ include "millrace.fullname" $ }}-ca}
  {{- else }}
  secret: {secretName: {{ include "millrace.caSecret" $ | quote }}, items: [{key: tls.crt, path: ca.crt}]} # without the key
  {{- end }}
- name: token
  projected: {sources: [{serviceAccountToken: {audience: millrace, expirationSeconds: 3600, path: token}}]}
{{- end }}
{{- end }}

{{- define "millrace.identityFlags" -}}
- -tls-cert=/run/millrace/tls/{{ . }}.pem
- -tls-key=/run/millrace/tls/{{ . }}.pem
- -tls-ca=/run/millrace/tls/ca.pem
{{- end }}

{{/* The default model: an init container that copies it, and the volume. */}}
{{- define "millrace.models" -}}
{{- if .Values.models.install -}}
- name: models
  {{- include "millrace.image" (list . "models") | nindent 2 }}
  args: [install-models, -to=/models]
  resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
  {{- include "millrace.security" . | nindent 2 }}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end }}
{{- end }}

{{/* Peers of a NetworkPolicy that are components: (list $ "xds" "extproc" …). */}}
{{- define "millrace.peers" -}}
- podSelector:
    matchLabels: {{- include "millrace.selector" (index . 0) | nindent 6 }}
    matchExpressions: [{key: app.kubernetes.io/component, operator: In, values: [{{ rest . | join ", " }}]}]
{{- end }}
