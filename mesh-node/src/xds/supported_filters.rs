//! More of the table of supported fields (see `support`): tracing, and filters that came after the first ones.

use super::support::Row;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    ("config.route.v3.HedgePolicy", "hedge_on_per_try_timeout", "initial_requests additional_request_chance"),
    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
     "client_sampling random_sampling overall_sampling verbose max_path_tag_length custom_tags provider \
      spawn_upstream_span operation upstream_operation no_context_propagation", ""),
    ("extensions.request_id.uuid.v3.UuidRequestIdConfig",
     "pack_trace_reason use_request_id_for_trace_sampling", ""),
    ("config.route.v3.Tracing",
     "client_sampling random_sampling overall_sampling custom_tags operation upstream_operation", ""),
    ("type.tracing.v3.CustomTag", "tag literal environment request_header metadata value", ""),
    ("type.tracing.v3.CustomTag.Literal", "value", ""),
    ("type.tracing.v3.CustomTag.Environment", "name default_value", ""),
    ("type.tracing.v3.CustomTag.Header", "name default_value", ""),
    ("type.tracing.v3.CustomTag.Metadata", "kind metadata_key default_value", ""),
    ("type.metadata.v3.MetadataKind", "request cluster host", ""),
    ("type.metadata.v3.MetadataKind.Request", "", ""),
    ("type.metadata.v3.MetadataKind.Cluster", "", ""),
    ("type.metadata.v3.MetadataKind.Host", "", ""),
    ("type.metadata.v3.MetadataKey", "key path", ""),
    ("type.metadata.v3.MetadataKey.PathSegment", "key", ""),
    ("config.trace.v3.Tracing.Http", "typed_config", "name"),
    ("config.trace.v3.OpenTelemetryConfig", "grpc_service http_service service_name resource_detectors", ""),
    ("config.trace.v3.ZipkinConfig",
     "collector_cluster collector_endpoint trace_id_128bit shared_span_context collector_endpoint_version \
      collector_hostname trace_context_option collector_service", ""),
    ("config.trace.v3.DatadogConfig", "", "collector_cluster service_name collector_hostname remote_config"),
    ("config.trace.v3.SkyWalkingConfig", "", "grpc_service client_config"),
    ("config.core.v3.HttpService", "http_uri request_headers_to_add", ""),
    ("config.core.v3.HttpUri", "uri cluster timeout", ""),
    ("extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig", "", ""),
    ("extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
     "attributes", ""),
    ("extensions.filters.http.lua.v3.Lua",
     "inline_code source_codes default_source_code stat_prefix clear_route_cache filter_context", ""),
    ("extensions.filters.http.lua.v3.LuaPerRoute", "disabled name source_code filter_context", ""),
    ("extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig", "dns_cache_config port_value", ""),
    ("extensions.filters.network.mongo_proxy.v3.MongoProxy", "stat_prefix delay commands",
     "emit_dynamic_metadata max_bson_depth"),
];
