{{- define "imagewarden.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects all pods of a release. */}}
{{- define "imagewarden.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "imagewarden.labels" -}}
{{ include "imagewarden.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* A group with all that `worker` says and it does not; of [root, group], as YAML. */}}
{{- define "imagewarden.group" -}}
{{- $root := index . 0 -}}
{{- $group := dict -}}
{{- range $key, $value := $root.Values.worker -}}
{{- $_ := set $group $key $value -}}
{{- end -}}
{{- range $key, $value := index . 1 -}}
{{- $_ := set $group $key $value -}}
{{- end -}}
{{- $settings := dict -}}
{{- range $key, $value := $root.Values.settings -}}
{{- $_ := set $settings $key $value -}}
{{- end -}}
{{- range $key, $value := $group.settings -}}
{{- $_ := set $settings $key $value -}}
{{- end -}}
{{- $_ := set $group "settings" $settings -}}
{{- $group | toYaml -}}
{{- end -}}

{{/* Of [root, image of a group]. */}}
{{- define "imagewarden.image" -}}
{{- $root := index . 0 -}}
{{- $own := index . 1 -}}
{{- $image := $root.Values.image -}}
{{- $repository := $own.repository | default $image.repository -}}
{{- $digest := $own.digest | default (ternary "" $image.digest (or (hasKey $own "tag") (hasKey $own "repository"))) -}}
{{- if $digest -}}
{{- printf "%s@%s" $repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($own.tag | default $image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The ConfigMap with policies; empty where the image's are used. */}}
{{- define "imagewarden.policies" -}}
{{- if .Values.policies.configMap -}}
{{- .Values.policies.configMap -}}
{{- else if or .Values.policies.files .Values.policies.binaryFiles -}}
{{- include "imagewarden.name" . -}}-policies
{{- end -}}
{{- end -}}
