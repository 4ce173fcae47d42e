{{/* A setting's value as the environment has it: 20971520 would be 2.097152e+07. */}}
{{- define "imagewarden.value" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- . | int64 | toString -}}
{{- else -}}
{{- . | toString -}}
{{- end -}}
{{- end -}}

{{/* Settings of [root, settings], plain and secret. */}}
{{- define "imagewarden.settings" -}}
{{- $root := index . 0 -}}
{{- range $name, $value := index . 1 }}
- name: IMAGEWARDEN_{{ $name }}
  value: {{ include "imagewarden.value" $value | quote }}
{{- end }}
{{- range $name, $from := $root.Values.secrets }}
- name: IMAGEWARDEN_{{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $from.name }}, key: {{ $from.key | quote }}}}
{{- end }}
{{- if $root.Values.kafkaTls.secret }}
- name: IMAGEWARDEN_KAFKA_SECURITY__CA_FILE
  value: /etc/imagewarden/kafka/ca.crt
{{- if $root.Values.kafkaTls.clientCertificate }}
- name: IMAGEWARDEN_KAFKA_SECURITY__CERT_FILE
  value: /etc/imagewarden/kafka/tls.crt
- name: IMAGEWARDEN_KAFKA_SECURITY__KEY_FILE
  value: /etc/imagewarden/kafka/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{- define "imagewarden.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "imagewarden.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What all pods have besides their containers. */}}
{{- define "imagewarden.pod" -}}
# Their variables for a Service named imagewarden would look like settings, and unknown ones
enableServiceLinks: false
automountServiceAccountToken: false
securityContext: {{- include "imagewarden.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What Kafka's certificates are mounted from, and to. */}}
{{- define "imagewarden.kafkaVolume" -}}
{{- with .Values.kafkaTls.secret }}
- name: kafka
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "imagewarden.kafkaMount" -}}
{{- if .Values.kafkaTls.secret }}
- {name: kafka, mountPath: /etc/imagewarden/kafka, readOnly: true}
{{- end }}
{{- end -}}
