{{/* The release's full name: at most 52 characters, for CronJobs add a suffix and Kubernetes some digits. */}}
{{- define "feed-worker.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release. */}}
{{- define "feed-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Every object has them, so values are looked at before anything is rendered. */}}
{{- define "feed-worker.labels" -}}
{{- include "feed-worker.validate" . -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "feed-worker.selectorLabels" . }}
app.kubernetes.io/version: {{ include "feed-worker.version" . | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: feed-worker
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* `annotations:` with the common ones and those given: (list . $more). Nothing if there are none. */}}
{{- define "feed-worker.annotations" -}}
{{- $root := index . 0 -}}
{{- with merge (dict) (index . 1) $root.Values.commonAnnotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "feed-worker.version" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{- define "feed-worker.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (include "feed-worker.version" .) -}}
{{- end -}}
{{- end -}}

{{- define "feed-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "feed-worker.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* A quantity of memory in bytes: 512Mi, 2G, 1073741824. */}}
{{- define "feed-worker.bytes" -}}
{{- $text := toString . -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- mul (trimSuffix $unit $text | int64) (get $units $unit | int64) -}}
{{- end -}}

{{/* What of the configuration the chart decides, added to what values say. */}}
{{- define "feed-worker.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $section := list "shutdown" "export" "statsd" -}}
{{- if not (hasKey $config $section) -}}{{- $_ := set $config $section (dict) -}}{{- end -}}
{{- end -}}
{{- $_ := set $config.shutdown "grace_ms" (mul .Values.terminationGracePeriodSeconds 1000) -}}
{{- if not (hasKey $config.export "memory_bytes_max") -}}
{{- $limit := include "feed-worker.bytes" .Values.resources.limits.memory | int64 -}}
{{- $_ := set $config.export "memory_bytes_max" (div (mul $limit 3) 8) -}}
{{- end -}}
{{- $_ := set $config.statsd "enabled" (ne .Values.statsd.target "none") -}}
{{- if eq .Values.statsd.target "address" -}}
{{- $_ := set $config.statsd "addr" (printf "%s:%d" .Values.statsd.address (int .Values.statsd.port)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "feed-worker.healthPort" -}}
{{- regexFind "[0-9]+$" .Values.config.health.addr -}}
{{- end -}}

{{/* Everything that makes a release of no use, told at once. */}}
{{- define "feed-worker.validate" -}}
{{- $problems := list -}}
{{- $partitions := int .Values.topic.partitions -}}
{{- if not .Values.config.kafka.bootstrap_servers -}}
{{- $problems = append $problems "config.kafka.bootstrap_servers is missing: host:port,host:port" -}}
{{- end -}}
{{- if not .Values.config.registry.url -}}
{{- $problems = append $problems "config.registry.url is missing: https://host:port" -}}
{{- end -}}
{{- if not .Values.database.secret -}}
{{- $problems = append $problems "database.secret is missing: the Secret with the worker's Postgres URL" -}}
{{- end -}}
{{- range $job := list "migration" "maintain" "audit" "operator" -}}
{{- $values := get $.Values $job -}}
{{- if and $values.enabled (not $values.database.secret) -}}
{{- $problems = append $problems (printf "%s.database.secret is missing: its role is not the worker's; or set %s.enabled to false" $job $job) -}}
{{- end -}}
{{- end -}}
{{- $placement := dig "postgres" "placement" "" .Values.config -}}
{{- if ne (empty $placement) (empty .Values.database.moreKey) -}}
{{- $problems = append $problems "database.moreKey (the Secret's key with the URLs of further Postgres servers) and config.postgres.placement belong together: set both or neither" -}}
{{- end -}}
{{- range $job := list "migration" "maintain" "audit" "operator" -}}
{{- $values := get $.Values $job -}}
{{- if and $values.enabled $placement (not $values.database.moreKey) -}}
{{- $problems = append $problems (printf "%s.database.moreKey is missing: with config.postgres.placement the job needs the URLs of every server" $job) -}}
{{- end -}}
{{- end -}}
{{- $auth := .Values.config.kafka.auth | default "none" -}}
{{- if and .Values.topicsDrift.enabled (has $auth (list "msk_iam" "token_file")) (not (contains "FEED_WORKER_KAFKA__AUTH" (toJson .Values.topicsDrift.extraEnv))) -}}
{{- $problems = append $problems (printf "topicsDrift.enabled: `feed-worker topics` cannot work with config.kafka.auth %s (docs/security.md): set it to false, or another FEED_WORKER_KAFKA__AUTH in topicsDrift.extraEnv" $auth) -}}
{{- end -}}
{{- if eq .Values.autoscaling.mode "none" -}}
{{- if gt (int .Values.replicaCount) $partitions -}}
{{- $problems = append $problems (printf "replicaCount (%d) is more than topic.partitions (%d): the others would have nothing to do" (int .Values.replicaCount) $partitions) -}}
{{- end -}}
{{- else -}}
{{- if gt (int .Values.autoscaling.maxReplicas) $partitions -}}
{{- $problems = append $problems (printf "autoscaling.maxReplicas (%d) is more than topic.partitions (%d): the others would have nothing to do" (int .Values.autoscaling.maxReplicas) $partitions) -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- $problems = append $problems "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.mode "keda") (not (.Capabilities.APIVersions.Has "keda.sh/v1alpha1")) -}}
{{- $problems = append $problems "autoscaling.mode is keda, but the cluster has no keda.sh/v1alpha1 (for `helm template`: --api-versions keda.sh/v1alpha1)" -}}
{{- end -}}
{{- if and (has $auth (list "msk_iam" "token_file")) (not (dig "kafka" "retention_ms" "" .Values.config)) (not (contains "FEED_WORKER_KAFKA__RETENTION_MS" (toJson .Values.extraEnv))) -}}
{{- $problems = append $problems (printf "config.kafka.retention_ms is missing: with config.kafka.auth %s brokers cannot be asked for it, and nobody would be told before records are deleted unread; set it to the topic's retention.ms" $auth) -}}
{{- end -}}
{{- if and .Values.monitors.prometheus.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- $problems = append $problems "networkPolicy.metricsFrom is empty, so that Prometheus (monitors.prometheus.enabled) may not ask the pods: name its namespace, [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], or set networkPolicy.enabled to false" -}}
{{- end -}}
{{- if and (eq .Values.statsd.target "address") (not .Values.statsd.address) -}}
{{- $problems = append $problems "statsd.address is missing, which statsd.target asks for" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "these values cannot be used:\n  %s" (join "\n  " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* The Postgres URL of a role, and those of further servers. */}}
{{- define "feed-worker.databaseUrl" -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- with .moreKey }}
- name: FEED_WORKER_POSTGRES__MORE_URLS
  valueFrom:
    secretKeyRef:
      name: {{ $.secret }}
      key: {{ . }}
{{- end }}
{{- end -}}

{{/* The environment of the containers that read the configuration: (dict "root" . "database" <Secret and key, or nil>). */}}
{{- define "feed-worker.env" -}}
{{- $root := .root -}}
- name: FEED_WORKER_CONFIG
  value: /etc/feed-worker/config.yaml
{{- if $root.Values.caCertificates.configMap }}
# Beside the image's own bundle.
- name: SSL_CERT_DIR
  value: /etc/feed-worker/ca
{{- end }}
{{- with .database }}
{{ include "feed-worker.databaseUrl" . }}
{{- end }}
{{- range $name, $from := $root.Values.secretEnv }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.secret }}
      key: {{ $from.key }}
{{- end }}
{{- with $root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every pod of the chart shares. */}}
{{- define "feed-worker.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What every container of the chart shares. */}}
{{- define "feed-worker.container" -}}
image: {{ include "feed-worker.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- define "feed-worker.configMount" -}}
- name: config
  mountPath: /etc/feed-worker/config.yaml
  # Not followed when it changes: a worker keeps the configuration that it started with.
  subPath: config.yaml
  readOnly: true
{{- end -}}

{{- define "feed-worker.caMount" -}}
{{- if .Values.caCertificates.configMap }}
- name: ca
  mountPath: /etc/feed-worker/ca
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "feed-worker.caVolume" -}}
{{- with .Values.caCertificates }}
{{- if .configMap }}
- name: ca
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "feed-worker.configVolume" -}}
- name: config
  configMap:
    name: {{ include "feed-worker.fullname" . }}
{{- end -}}

{{/*
One of the scheduled jobs: (dict "root" . "name" "maintain" "job" .Values.maintain "args" (list "maintain") "database" .Values.maintain.database).
*/}}
{{- define "feed-worker.cronJob" -}}
{{- $root := .root -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "feed-worker.fullname" $root }}-{{ .name }}
  labels:
    {{- include "feed-worker.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  {{- with include "feed-worker.annotations" (list $root dict) }}{{ . | nindent 2 }}{{ end }}
spec:
  {{- if .suspended }}
  suspend: true
  # Kubernetes wants one.
  {{- end }}
  schedule: {{ .job.schedule | default "0 0 1 1 *" | quote }}
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  # A run that was missed for so long is left to the next one.
  startingDeadlineSeconds: 1800
  successfulJobsHistoryLimit: {{ $root.Values.jobsHistory.successful }}
  failedJobsHistoryLimit: {{ $root.Values.jobsHistory.failed }}
  jobTemplate:
    spec:
      # What is away comes back; what was found stays found. What somebody decided is done once.
      backoffLimit: {{ ternary 0 3 (default false .suspended) }}
      activeDeadlineSeconds: {{ .job.activeDeadlineSeconds }}
      podFailurePolicy:
        rules:
          - action: FailJob
            onExitCodes:
              containerName: {{ .name }}
              operator: In
              # Differences or findings; bad configuration; refused.
              values: [2, 64, 66]
          - action: Ignore
            onPodConditions:
              # Kubernetes 1.30 wants the status said.
              - type: DisruptionTarget
                status: "True"
      template:
        metadata:
          labels:
            {{- include "feed-worker.labels" $root | nindent 12 }}
            app.kubernetes.io/component: {{ .name }}
        spec:
          {{- include "feed-worker.pod" $root | nindent 10 }}
          serviceAccountName: {{ .job.serviceAccountName | default (include "feed-worker.serviceAccountName" $root) }}
          restartPolicy: Never
          containers:
            - name: {{ .name }}
              {{- include "feed-worker.container" $root | nindent 14 }}
              args:
                {{- toYaml .args | nindent 16 }}
              env:
                {{- include "feed-worker.env" (dict "root" $root "database" .database) | nindent 16 }}
                {{- with .job.extraEnv }}
                {{- toYaml . | nindent 16 }}
                {{- end }}
              resources:
                {{- toYaml .job.resources | nindent 16 }}
              volumeMounts:
                {{- include "feed-worker.configMount" $root | nindent 16 }}
                {{- with .mounts }}
                {{- toYaml . | nindent 16 }}
                {{- end }}
                {{- with include "feed-worker.caMount" $root }}{{ . | trim | nindent 16 }}{{ end }}
          volumes:
            {{- include "feed-worker.configVolume" $root | nindent 12 }}
            {{- with include "feed-worker.caVolume" $root }}{{ . | trim | nindent 12 }}{{ end }}
{{- end -}}

{{/* The port of host:port, or of a URL. */}}
{{- define "feed-worker.port" -}}
{{- $port := regexFind ":[0-9]+(/|$)" (regexReplaceAll "^https?://" . "") | trimPrefix ":" | trimSuffix "/" -}}
{{- $port | default (ternary "80" "443" (hasPrefix "http://" .)) -}}
{{- end -}}

{{/* Every TCP port that pods have to reach, in order, each once; as JSON. */}}
{{- define "feed-worker.egressPorts" -}}
{{- $ports := list (int .Values.networkPolicy.databasePort) -}}
{{- range .Values.networkPolicy.ports -}}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- $addresses := append (splitList "," .Values.config.kafka.bootstrap_servers) .Values.config.registry.url -}}
{{- with .Values.config.s3.endpoint -}}{{- $addresses = append $addresses . -}}{{- end -}}
{{- with dig "traces" "endpoint" "" .Values.config -}}{{- $addresses = append $addresses . -}}{{- end -}}
{{- range $addresses -}}{{- $ports = append $ports (include "feed-worker.port" (trim .) | int) -}}{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{- define "feed-worker.metricsPort" -}}
{{- include "feed-worker.healthPort" . -}}
{{- end -}}

{{/* How slowly workers go away. */}}
{{- define "feed-worker.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 60
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ .Values.autoscaling.scaleDownPeriodSeconds }}
{{- end -}}
