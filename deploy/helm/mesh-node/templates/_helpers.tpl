{{- define "mesh-node.labels" -}}
app.kubernetes.io/name: mesh-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mesh-node.bootstrap" -}}
{{- if .Values.bootstrap }}
{{- .Values.bootstrap }}
{{- else if .Values.istiod.address -}}
# Each pod gets its listeners, routes and clusters from istiod.
node: { id: mesh-node, cluster: mesh-node, metadata: { CLUSTER_ID: {{ .Values.istiod.clusterId | quote }} } }
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: {{ .Values.adminPort }} } }
dynamic_resources:
  lds_config: { ads: {}, resource_api_version: V3 }
  cds_config: { ads: {}, resource_api_version: V3 }
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc: { cluster_name: xds-grpc }
      initial_metadata: [{ key: clusterid, value: {{ .Values.istiod.clusterId | quote }} }]
static_resources:
  clusters:
  - name: xds-grpc
    type: STRICT_DNS
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    {{- if .Values.istiod.tls }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {{ .Values.istiod.serverName | quote }}
        common_tls_context:
          alpn_protocols: [h2]
          validation_context:
            trusted_ca: { filename: /var/run/secrets/istio/root-cert.pem }
            match_typed_subject_alt_names:
            - { san_type: DNS, matcher: { exact: {{ .Values.istiod.serverName | quote }} } }
    {{- end }}
    load_assignment:
      cluster_name: xds-grpc
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: {{ .Values.istiod.address | quote }}, port_value: {{ .Values.istiod.port }} } } }
{{- else -}}
# Connections are passed on as they are.
node: { id: mesh-node, cluster: mesh-node }
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: {{ .Values.adminPort }} } }
static_resources:
  listeners:
  - name: virtualOutbound
    traffic_direction: OUTBOUND
    use_original_dst: true
    address: { socket_address: { address: 0.0.0.0, port_value: 15001 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: PassthroughCluster
          cluster: PassthroughCluster
  - name: virtualInbound
    traffic_direction: INBOUND
    address: { socket_address: { address: 0.0.0.0, port_value: 15006 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: InboundPassthroughCluster
          cluster: InboundPassthroughCluster
  clusters:
  - { name: PassthroughCluster, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 10s }
  - { name: InboundPassthroughCluster, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 10s }
{{- end }}
{{- end }}

{{- define "mesh-node.settings" -}}
pods_from: kubernetes
{{- if .Values.istiod.address }}
virtual_sidecars: true
{{- if .Values.istiod.tls }}
pod_token_audience: istio-ca
{{- end }}
{{- end }}
{{ toYaml .Values.settings }}
{{- end }}
