//! The table of [`super::support`]: message, honoured fields, ignored fields.

use super::support::Row;

/// All messages that a converter reads.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    ("config.bootstrap.v3.Bootstrap", "node admin static_resources dynamic_resources layered_runtime stats_config cluster_manager",
     "bootstrap_extensions stats_sinks stats_flush_interval stats_flush_on_admin \
      node_context_params watchdog watchdogs overload_manager default_socket_interface \
      typed_dns_resolver_config application_log_config memory_allocator_manager deferred_stat_options \
      fatal_actions default_regex_engine grpc_async_client_manager_config inline_headers \
      perf_tracing_file_path flags_path"),
    ("config.bootstrap.v3.ClusterManager", "local_cluster_name",
     "outlier_detection upstream_bind_config load_stats_config enable_deferred_cluster_creation"),
    ("config.metrics.v3.StatsConfig", "stats_tags use_all_default_tags stats_matcher histogram_bucket_settings",
     "allow_default_tag_overrides"),
    ("config.metrics.v3.TagSpecifier", "tag_name regex fixed_value", ""),
    ("config.metrics.v3.StatsMatcher", "reject_all inclusion_list exclusion_list", ""),
    ("config.metrics.v3.HistogramBucketSettings", "match buckets", ""),
    ("type.matcher.v3.ListStringMatcher", "patterns", ""),
    ("config.bootstrap.v3.LayeredRuntime", "layers", ""),
    ("config.bootstrap.v3.RuntimeLayer", "name static_layer disk_layer admin_layer rtds_layer", ""),
    ("config.bootstrap.v3.RuntimeLayer.DiskLayer", "symlink_root subdirectory append_service_cluster", ""),
    ("config.bootstrap.v3.RuntimeLayer.AdminLayer", "", ""),
    ("config.bootstrap.v3.RuntimeLayer.RtdsLayer", "name rtds_config", ""),
    ("service.runtime.v3.Runtime", "name layer", ""),
    ("config.bootstrap.v3.Bootstrap.StaticResources", "listeners clusters secrets", ""),
    ("config.bootstrap.v3.Bootstrap.DynamicResources", "lds_config cds_config ads_config", ""),
    ("config.core.v3.ConfigSource",
     "path path_config_source api_config_source ads self initial_fetch_timeout resource_api_version", ""),
    ("config.core.v3.PathConfigSource", "path watched_directory", ""),
    ("config.core.v3.WatchedDirectory", "path", ""),
    ("config.core.v3.AggregatedConfigSource", "", ""),
    ("config.core.v3.SelfConfigSource", "transport_api_version", ""),
    ("config.core.v3.ApiConfigSource",
     "api_type grpc_services transport_api_version cluster_names refresh_delay request_timeout",
     "rate_limit_settings set_node_on_first_message_only"),
    ("config.core.v3.GrpcService", "envoy_grpc google_grpc initial_metadata timeout", "retry_policy"),
    ("config.core.v3.GrpcService.GoogleGrpc",
     "target_uri channel_credentials call_credentials channel_args",
     "stat_prefix credentials_factory_name config per_stream_buffer_limit_bytes"),
    ("config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials", "ssl_credentials local_credentials", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.SslCredentials", "root_certs private_key cert_chain", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.GoogleLocalCredentials", "", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.CallCredentials", "access_token from_plugin", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.CallCredentials.MetadataCredentialsFromPlugin",
     "name typed_config", ""),
    ("config.grpc_credential.v3.FileBasedMetadataConfig", "secret_data header_key header_prefix", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.ChannelArgs", "args", ""),
    ("config.core.v3.GrpcService.GoogleGrpc.ChannelArgs.Value", "string_value", "int_value"),
    ("config.core.v3.ExtensionConfigSource",
     "config_source default_config apply_default_config_without_warming type_urls", ""),
    ("config.core.v3.GrpcService.EnvoyGrpc", "cluster_name authority max_receive_message_length",
     "retry_policy skip_envoy_headers"),
    ("config.bootstrap.v3.Admin", "address", "access_log_path access_log profile_path ignore_global_conn_limit"),

    ("config.listener.v3.Listener",
     "name address stat_prefix filter_chains default_filter_chain use_original_dst traffic_direction \
      bind_to_port deprecated_v1 listener_filters listener_filters_timeout \
      continue_on_listener_filters_timeout per_connection_buffer_limit_bytes access_log \
      additional_addresses",
     "metadata drain_type stats_matcher reuse_port enable_reuse_port connection_balance_config \
      tcp_fast_open_queue_length tcp_backlog_size max_connections_to_accept_per_socket_event \
      ignore_global_conn_limit bypass_overload_manager per_connection_buffer_high_watermark_timeout \
      tcp_keepalive"),
    ("config.listener.v3.AdditionalAddress", "address", ""),
    ("config.listener.v3.Listener.DeprecatedV1", "bind_to_port", ""),
    ("config.listener.v3.FilterChain",
     "name filter_chain_match filters transport_socket transport_socket_connect_timeout", "metadata"),
    ("config.listener.v3.FilterChainMatch",
     "destination_port prefix_ranges server_names transport_protocol application_protocols source_type \
      direct_source_prefix_ranges source_prefix_ranges source_ports", ""),
    ("config.listener.v3.Filter", "name typed_config config_discovery", ""),
    ("config.listener.v3.ListenerFilter", "name typed_config filter_disabled", ""),
    ("config.listener.v3.ListenerFilterChainMatchPredicate",
     "or_match and_match not_match any_match destination_port_range", ""),
    ("config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet", "rules", ""),
    ("extensions.filters.listener.original_dst.v3.OriginalDst", "", ""),
    ("extensions.filters.listener.tls_inspector.v3.TlsInspector", "",
     "enable_ja3_fingerprinting enable_ja4_fingerprinting initial_read_buffer_size"),
    ("extensions.filters.listener.http_inspector.v3.HttpInspector", "", ""),
    ("extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
     "allow_requests_without_proxy_protocol disallowed_versions", "stat_prefix"),

    ("config.core.v3.Address", "socket_address", ""),
    ("config.core.v3.SocketAddress", "protocol address port_value", "ipv4_compat"),
    ("config.core.v3.CidrRange", "address_prefix prefix_len", ""),
    ("config.core.v3.TransportSocket", "name typed_config", ""),
    ("config.core.v3.DataSource", "filename inline_bytes inline_string environment_variable watched_directory",
     ""),
    ("config.core.v3.Metadata", "filter_metadata", "typed_filter_metadata"),
    ("config.core.v3.Node", "id cluster metadata locality",
     "user_agent_name user_agent_version dynamic_parameters user_agent_build_version extensions client_features listening_addresses"),
    ("config.core.v3.Locality", "region zone sub_zone", ""),
    ("config.core.v3.TypedExtensionConfig", "name typed_config", ""),
    ("config.core.v3.RuntimeFractionalPercent", "default_value runtime_key", ""),
    ("config.core.v3.RuntimeDouble", "default_value runtime_key", ""),
    ("config.core.v3.TcpKeepalive", "keepalive_probes keepalive_time keepalive_interval", ""),
    ("config.core.v3.BindConfig",
     "source_address extra_source_addresses additional_source_addresses", ""),
    ("config.core.v3.ExtraSourceAddress", "address", ""),
    ("config.core.v3.HeaderValueOption", "header append append_action keep_empty_value", ""),
    ("config.core.v3.HeaderValue", "key value", ""),
    ("config.core.v3.SubstitutionFormatString",
     "text_format text_format_source json_format omit_empty_values content_type",
     "json_format_options formatters"),
    ("config.core.v3.HttpProtocolOptions",
     "idle_timeout max_connection_duration max_headers_count max_stream_duration \
      headers_with_underscores_action max_requests_per_connection",
     "max_connection_duration_jitter max_response_headers_kb"),
    ("config.core.v3.UpstreamHttpProtocolOptions", "auto_sni auto_san_validation", ""),
    ("config.core.v3.Http1ProtocolOptions",
     "allow_absolute_url accept_http_10 default_host_for_http_10 header_key_format enable_trailers \
      allow_chunked_length",
     "override_stream_error_on_invalid_http_message use_balsa_parser allow_custom_methods"),
    ("config.core.v3.Http1ProtocolOptions.HeaderKeyFormat", "proper_case_words stateful_formatter", ""),
    ("extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
     "formatter_type_on_envoy_headers", ""),
    ("config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords", "", ""),
    ("config.core.v3.Http2ProtocolOptions",
     "max_concurrent_streams initial_stream_window_size initial_connection_window_size allow_connect \
      connection_keepalive",
     "hpack_table_size max_outbound_frames max_outbound_control_frames \
      max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream \
      max_inbound_window_update_frames_per_data_frame_sent stream_error_on_invalid_http_messaging \
      override_stream_error_on_invalid_http_message use_oghttp2_codec max_metadata_size \
      enable_huffman_encoding max_header_field_size_kb disallow_obs_text stream_reset_burst \
      stream_reset_rate"),
    ("config.core.v3.KeepaliveSettings", "interval timeout", "interval_jitter connection_idle_interval"),

    ("type.v3.Int32Range", "start end", ""),
    ("type.v3.Int64Range", "start end", ""),
    ("type.v3.Percent", "value", ""),
    ("type.v3.FractionalPercent", "numerator denominator", ""),
    ("type.v3.HashPolicy", "source_ip", ""),
    ("type.v3.HashPolicy.SourceIp", "", ""),
    ("type.matcher.v3.StringMatcher", "exact prefix suffix safe_regex contains ignore_case", ""),
    ("type.matcher.v3.RegexMatcher", "regex", "google_re2"),
    ("type.matcher.v3.RegexMatchAndSubstitute", "pattern substitution", ""),

    ("config.accesslog.v3.AccessLog", "name typed_config filter", ""),
    ("config.accesslog.v3.AccessLogFilter",
     "status_code_filter duration_filter not_health_check_filter runtime_filter and_filter or_filter \
      response_flag_filter grpc_status_filter \
      header_filter metadata_filter log_type_filter extension_filter", ""),
    ("config.accesslog.v3.StatusCodeFilter", "comparison", ""),
    ("config.accesslog.v3.DurationFilter", "comparison", ""),
    ("config.accesslog.v3.ComparisonFilter", "op value", ""),
    ("config.accesslog.v3.NotHealthCheckFilter", "", ""),
    ("config.accesslog.v3.RuntimeFilter", "percent_sampled runtime_key", "use_independent_randomness"),
    ("config.accesslog.v3.AndFilter", "filters", ""),
    ("config.accesslog.v3.OrFilter", "filters", ""),
    ("config.accesslog.v3.ResponseFlagFilter", "flags", ""),
    ("config.accesslog.v3.ExtensionFilter", "name typed_config", ""),
    ("extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression", ""),
    ("config.accesslog.v3.HeaderFilter", "header", ""),
    ("config.accesslog.v3.MetadataFilter", "matcher match_if_key_not_found", ""),
    ("config.accesslog.v3.LogTypeFilter", "types exclude", ""),
    ("config.accesslog.v3.GrpcStatusFilter", "statuses exclude", ""),
    ("config.core.v3.RuntimeUInt32", "default_value runtime_key", ""),
    ("extensions.access_loggers.file.v3.FileAccessLog",
     "path format json_format typed_json_format log_format", ""),
    ("extensions.access_loggers.stream.v3.StdoutAccessLog", "log_format", ""),
    ("extensions.access_loggers.stream.v3.StderrAccessLog", "log_format", ""),
    ("extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig", "common_config", ""),
    ("extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig", "common_config", ""),
    ("extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig", "log_name grpc_service transport_api_version",
     "buffer_flush_interval buffer_size_bytes grpc_stream_retry_policy"),

    ("extensions.filters.network.tcp_proxy.v3.TcpProxy",
     "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts hash_policy \
      max_downstream_connection_duration metadata_match tunneling_config",
     "access_log_flush_interval flush_access_log_on_connected access_log_options \
      backoff_options check_drain_close max_downstream_connection_duration_jitter_percentage"),
    ("extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster", "clusters", ""),
    ("extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight", "name weight",
     "metadata_match"),

    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
     "codec_type stat_prefix http_filters common_http_protocol_options http_protocol_options \
      http2_protocol_options server_name server_header_transformation max_request_headers_kb \
      stream_idle_timeout request_timeout request_headers_timeout drain_timeout delayed_close_timeout \
      access_log use_remote_address xff_num_trusted_hops internal_address_config skip_xff_append via \
      generate_request_id preserve_external_request_id always_set_request_id_in_response \
      forward_client_cert_details set_current_client_cert_details proxy_100_continue upgrade_configs \
      normalize_path merge_slashes path_with_escaped_slashes_action strip_matching_host_port \
      strip_any_host_port route_config rds scoped_routes tracing request_id_extension \
      append_x_forwarded_port local_reply_config",
     "http1_safe_max_connection_duration http3_protocol_options stream_flush_timeout drain_timeout_jitter \
      access_log_flush_interval flush_access_log_on_new_request access_log_options \
      stream_error_on_invalid_http_message append_local_overload add_proxy_protocol_connection_state"),
    ("extensions.filters.network.http_connection_manager.v3.LocalReplyConfig", "mappers body_format", ""),
    ("extensions.filters.network.http_connection_manager.v3.ResponseMapper",
     "filter status_code body body_format_override headers_to_add", ""),
    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
     "cidr_ranges", "unix_sockets"),
    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
     "subject cert chain dns uri", ""),
    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
     "upgrade_type enabled", ""),
    ("extensions.filters.network.http_connection_manager.v3.HttpFilter", "name typed_config disabled config_discovery", "is_optional"),
    ("extensions.filters.http.router.v3.Router", "suppress_envoy_headers upstream_log",
     "dynamic_stats start_child_span upstream_log_options suppress_grpc_request_failure_code_stats \
      reject_connect_request_early_data"),

    ("extensions.filters.network.rbac.v3.RBAC",
     "rules shadow_rules shadow_rules_stat_prefix stat_prefix delay_deny", "enforcement_type"),
    ("extensions.filters.network.local_ratelimit.v3.LocalRateLimit", "stat_prefix token_bucket runtime_enabled",
     "share_key"),
    ("extensions.filters.network.connection_limit.v3.ConnectionLimit", "stat_prefix max_connections delay runtime_enabled",
     ""),
    ("extensions.filters.network.sni_cluster.v3.SniCluster", "", ""),
    ("extensions.filters.network.mysql_proxy.v3.MySQLProxy", "", "stat_prefix"),
    ("extensions.filters.network.http_connection_manager.v3.RequestIDExtension", "typed_config", ""),
    ("tcp.metadataexchange.config.MetadataExchange", "protocol", "enable_discovery additional_labels"),
    ("config.route.v3.FilterConfig", "config disabled", "is_optional"),
    ("extensions.filters.http.cors.v3.Cors", "", ""),
    ("extensions.filters.http.cors.v3.CorsPolicy",
     "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials filter_enabled \
      shadow_enabled allow_private_network_access forward_not_matching_preflights", ""),
    ("extensions.filters.http.fault.v3.HTTPFault",
     "delay abort upstream_cluster headers downstream_nodes max_active_faults response_rate_limit \
      delay_percent_runtime abort_percent_runtime delay_duration_runtime abort_http_status_runtime \
      max_active_faults_runtime response_rate_limit_percent_runtime abort_grpc_status_runtime",
     "disable_downstream_cluster_stats filter_metadata"),
    ("extensions.filters.http.fault.v3.FaultAbort", "percentage http_status grpc_status header_abort", ""),
    ("extensions.filters.http.fault.v3.FaultAbort.HeaderAbort", "", ""),
    ("extensions.filters.common.fault.v3.FaultDelay", "percentage fixed_delay header_delay", ""),
    ("extensions.filters.common.fault.v3.FaultDelay.HeaderDelay", "", ""),
    ("extensions.filters.common.fault.v3.FaultRateLimit", "percentage fixed_limit header_limit", ""),
    ("extensions.filters.common.fault.v3.FaultRateLimit.FixedLimit", "limit_kbps", ""),
    ("extensions.filters.common.fault.v3.FaultRateLimit.HeaderLimit", "", ""),
    ("extensions.filters.http.rbac.v3.RBAC",
     "rules rules_stat_prefix shadow_rules shadow_rules_stat_prefix", "track_per_rule_stats"),
    ("extensions.filters.http.rbac.v3.RBACPerRoute", "rbac", ""),
    ("config.rbac.v3.RBAC", "action policies", "audit_logging_options"),
    ("config.rbac.v3.Policy", "permissions principals", ""),
    ("config.rbac.v3.Permission",
     "and_rules or_rules any header url_path destination_ip destination_port destination_port_range metadata \
      not_rule requested_server_name uri_template sourced_metadata", ""),
    ("config.rbac.v3.Permission.Set", "rules", ""),
    ("config.rbac.v3.Principal",
     "and_ids or_ids any authenticated source_ip direct_remote_ip remote_ip header url_path metadata filter_state \
      not_id sourced_metadata", ""),
    ("config.rbac.v3.Principal.Set", "ids", ""),
    ("config.rbac.v3.Principal.Authenticated", "principal_name", ""),
    ("config.rbac.v3.SourcedMetadata", "metadata_matcher metadata_source", ""),
    ("type.matcher.v3.PathMatcher", "path", ""),
    ("type.matcher.v3.MetadataMatcher", "filter path value invert", ""),
    ("type.matcher.v3.MetadataMatcher.PathSegment", "key", ""),
    ("type.matcher.v3.FilterStateMatcher", "key string_match", ""),
    ("type.matcher.v3.ValueMatcher",
     "null_match double_match string_match bool_match present_match list_match or_match", ""),
    ("type.matcher.v3.ValueMatcher.NullMatch", "", ""),
    ("type.matcher.v3.DoubleMatcher", "range exact", ""),
    ("type.matcher.v3.ListMatcher", "one_of", ""),
    ("type.matcher.v3.OrMatcher", "value_matchers", ""),
    ("type.v3.DoubleRange", "start end", ""),
    ("extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template", ""),
    ("extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
     "stat_prefix status token_bucket filter_enabled filter_enforced request_headers_to_add_when_not_enforced \
      response_headers_to_add descriptors rate_limits stage always_consume_default_token_bucket \
      rate_limited_as_resource_exhausted enable_x_ratelimit_headers", "max_dynamic_descriptors"),
    ("extensions.common.ratelimit.v3.LocalRateLimitDescriptor", "entries token_bucket", ""),
    ("extensions.common.ratelimit.v3.RateLimitDescriptor.Entry", "key value", ""),
    ("type.v3.TokenBucket", "max_tokens tokens_per_fill fill_interval", ""),
    ("type.v3.HttpStatus", "code", ""),
    ("config.route.v3.RateLimit", "actions stage", ""),
    ("config.route.v3.RateLimit.Action",
     "destination_cluster request_headers remote_address generic_key header_value_match \
      query_parameter_value_match", ""),
    ("config.route.v3.RateLimit.Action.DestinationCluster", "", ""),
    ("config.route.v3.RateLimit.Action.RemoteAddress", "", ""),
    ("config.route.v3.RateLimit.Action.GenericKey", "descriptor_key descriptor_value", ""),
    ("config.route.v3.RateLimit.Action.RequestHeaders", "header_name descriptor_key skip_if_absent", ""),
    ("config.route.v3.RateLimit.Action.HeaderValueMatch",
     "descriptor_key descriptor_value expect_match headers", ""),
    ("config.route.v3.RateLimit.Action.QueryParameterValueMatch",
     "descriptor_key descriptor_value expect_match query_parameters", ""),
    ("extensions.filters.http.grpc_stats.v3.FilterConfig", "",
     "emit_filter_state individual_method_stats_allowlist stats_for_all_methods enable_upstream_stats replace_dots_in_grpc_service_name"),
    ("extensions.filters.http.grpc_web.v3.GrpcWeb", "", ""),
    ("extensions.filters.http.header_mutation.v3.HeaderMutation",
     "mutations most_specific_header_mutations_wins", ""),
    ("extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute", "mutations", ""),
    ("extensions.filters.http.header_mutation.v3.Mutations", "request_mutations response_mutations", ""),
    ("config.common.mutation_rules.v3.HeaderMutation", "remove append", ""),
    ("extensions.filters.http.buffer.v3.Buffer", "max_request_bytes", ""),
    ("extensions.filters.http.buffer.v3.BufferPerRoute", "disabled buffer", ""),
    ("config.core.v3.RuntimeFeatureFlag", "default_value runtime_key", ""),
    ("extensions.filters.http.csrf.v3.CsrfPolicy", "filter_enabled shadow_enabled additional_origins", ""),
    ("extensions.filters.http.stateful_session.v3.StatefulSession", "session_state strict", "stat_prefix"),
    ("extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute", "disabled stateful_session", ""),
    ("extensions.http.stateful_session.cookie.v3.CookieBasedSessionState", "cookie", ""),
    ("extensions.http.stateful_session.header.v3.HeaderBasedSessionState", "name", ""),
    ("type.http.v3.Cookie", "name ttl path attributes", ""),
    ("type.http.v3.CookieAttribute", "name value", ""),
    ("extensions.filters.http.header_to_metadata.v3.Config", "request_rules response_rules", "stat_prefix"),
    ("extensions.filters.http.header_to_metadata.v3.Config.Rule",
     "header cookie on_header_present on_header_missing remove", ""),
    ("extensions.filters.http.header_to_metadata.v3.Config.KeyValuePair",
     "metadata_namespace key value regex_value_rewrite type encode", ""),
    ("extensions.filters.http.set_metadata.v3.Config", "metadata_namespace value metadata", ""),
    ("extensions.filters.http.set_metadata.v3.Metadata", "metadata_namespace allow_overwrite value", ""),
    ("extensions.filters.http.set_filter_state.v3.Config", "on_request_headers clear_route_cache", ""),
    ("extensions.filters.common.set_filter_state.v3.FilterStateValue",
     "object_key format_string read_only skip_if_empty", "factory_key shared_with_upstream"),
    ("extensions.filters.http.health_check.v3.HealthCheck", "pass_through_mode headers", "cache_time"),
    ("io.istio.http.peer_metadata.Config",
     "downstream_discovery upstream_discovery downstream_propagation upstream_propagation additional_labels",
     "shared_with_upstream"),
    ("io.istio.http.peer_metadata.Config.DiscoveryMethod", "istio_headers baggage", "workload_discovery"),
    ("io.istio.http.peer_metadata.Config.PropagationMethod", "istio_headers baggage", ""),
    ("io.istio.http.peer_metadata.Config.IstioHeaders", "skip_external_clusters", ""),
    ("io.istio.http.peer_metadata.Config.Baggage", "", ""),
    ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", "alpn_override", ""),
    ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride",
     "upstream_protocol alpn_override", ""),
    ("stats.PluginConfig", "disable_host_header_fallback tcp_reporting_duration metrics reporter",
     "rotation_interval graceful_deletion_interval"),
    ("stats.MetricConfig", "dimensions name tags_to_remove drop", "match"),

    ("extensions.filters.network.http_connection_manager.v3.Rds", "config_source route_config_name", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRoutes",
     "name scope_key_builder rds_config_source scoped_route_configurations_list scoped_rds", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder", "fragments", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder",
     "header_value_extractor", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.\
      HeaderValueExtractor", "name element_separator index element", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.\
      HeaderValueExtractor.KvElement", "separator key", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRouteConfigurationsList",
     "scoped_route_configurations", ""),
    ("extensions.filters.network.http_connection_manager.v3.ScopedRds", "scoped_rds_config_source", ""),
    ("config.route.v3.ScopedRouteConfiguration", "name route_configuration_name route_configuration key", "on_demand"),
    ("config.route.v3.ScopedRouteConfiguration.Key", "fragments", ""),
    ("config.route.v3.ScopedRouteConfiguration.Key.Fragment", "string_key", ""),
    ("config.route.v3.RouteConfiguration",
     "name virtual_hosts internal_only_headers request_headers_to_add request_headers_to_remove \
      response_headers_to_add response_headers_to_remove most_specific_header_mutations_wins \
      validate_clusters max_direct_response_body_size_bytes ignore_port_in_host_matching \
      typed_per_filter_config vhds",
     "metadata"),
    ("config.route.v3.VirtualHost",
     "name domains routes require_tls request_headers_to_add request_headers_to_remove \
      response_headers_to_add response_headers_to_remove include_request_attempt_count \
      include_attempt_count_in_response retry_policy hedge_policy typed_per_filter_config rate_limits cors \
      virtual_clusters",
     "per_request_buffer_limit_bytes \
      request_body_buffer_limit metadata"),
    ("config.route.v3.VirtualCluster", "name headers", ""),
    ("config.route.v3.Route",
     "name match route redirect direct_response request_headers_to_add request_headers_to_remove \
      response_headers_to_add response_headers_to_remove typed_per_filter_config decorator \
      tracing metadata",
     "stat_prefix per_request_buffer_limit_bytes \
      request_body_buffer_limit"),
    ("config.route.v3.RouteMatch",
     "prefix path safe_regex path_separated_prefix connect_matcher case_sensitive runtime_fraction dynamic_metadata filter_state tls_context headers \
      query_parameters grpc", ""),
    ("config.route.v3.Decorator", "operation propagate", ""),
    ("config.route.v3.RouteMatch.GrpcRouteMatchOptions", "", ""),
    ("config.route.v3.RouteMatch.TlsContextMatchOptions", "presented validated", ""),
    ("config.route.v3.RouteMatch.ConnectMatcher", "", ""),
    ("config.route.v3.HeaderMatcher",
     "name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match \
      string_match invert_match treat_missing_header_as_empty", ""),
    ("config.route.v3.QueryParameterMatcher", "name string_match present_match", ""),
    ("config.route.v3.RouteAction",
     "cluster cluster_header weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite \
      host_rewrite_literal auto_host_rewrite host_rewrite_header host_rewrite_path_regex \
      append_x_forwarded_host timeout idle_timeout retry_policy hedge_policy priority hash_policy max_grpc_timeout \
      grpc_timeout_offset internal_redirect_policy metadata_match upgrade_configs max_stream_duration request_mirror_policies \
      rate_limits include_vh_rate_limits cors",
     "early_data_policy flush_timeout"),
    ("config.route.v3.CorsPolicy",
     "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials \
      filter_enabled shadow_enabled allow_private_network_access forward_not_matching_preflights", ""),
    ("config.route.v3.RouteAction.RequestMirrorPolicy",
     "cluster cluster_header runtime_fraction disable_shadow_host_suffix_append host_rewrite_literal",
     "trace_sampled"),
    ("config.route.v3.RouteAction.MaxStreamDuration", "max_stream_duration grpc_timeout_header_max", ""),
    ("config.route.v3.RouteAction.UpgradeConfig", "upgrade_type enabled connect_config", ""),
    ("config.route.v3.RouteAction.UpgradeConfig.ConnectConfig", "", ""),
    ("config.route.v3.RouteAction.HashPolicy",
     "header cookie connection_properties query_parameter terminal", ""),
    ("config.route.v3.RouteAction.HashPolicy.Header", "header_name regex_rewrite", ""),
    ("config.route.v3.RouteAction.HashPolicy.Cookie", "name ttl path attributes", ""),
    ("config.route.v3.RouteAction.HashPolicy.CookieAttribute", "name value", ""),
    ("config.route.v3.RouteAction.HashPolicy.ConnectionProperties", "source_ip", ""),
    ("config.route.v3.RouteAction.HashPolicy.QueryParameter", "name", ""),
    ("config.route.v3.WeightedCluster", "clusters runtime_key_prefix", "total_weight"),
    ("config.route.v3.WeightedCluster.ClusterWeight",
     "name weight request_headers_to_add request_headers_to_remove response_headers_to_add \
      response_headers_to_remove host_rewrite_literal metadata_match",
     "typed_per_filter_config"),
    ("config.route.v3.RedirectAction",
     "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite \
      response_code strip_query", ""),
    ("config.route.v3.DirectResponseAction", "status body body_format", ""),
    ("config.route.v3.RetryPolicy",
     "retry_on num_retries per_try_timeout per_try_idle_timeout retry_priority retry_host_predicate \
      host_selection_retry_max_attempts retriable_status_codes retry_back_off retriable_headers \
      retriable_request_headers", ""),
    ("config.route.v3.RetryPolicy.RetryBackOff", "base_interval max_interval", ""),
    ("config.route.v3.RetryPolicy.RetryPriority", "name typed_config", ""),
    ("extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency", ""),
    ("config.route.v3.RetryPolicy.RetryHostPredicate", "name typed_config", ""),
    ("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", "", ""),
    ("extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate", "", ""),
    ("extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig", "metadata_match", ""),
    ("config.route.v3.InternalRedirectPolicy",
     "max_internal_redirects redirect_response_codes predicates allow_cross_scheme_redirect \
      response_headers_to_copy", ""),
    ("extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig", "", ""),
    ("extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig", "allowed_route_names", ""),
    ("extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig", "", ""),

    ("config.cluster.v3.Cluster",
     "name cluster_type alt_stat_name type eds_cluster_config connect_timeout per_connection_buffer_limit_bytes lb_policy load_assignment \
      max_requests_per_connection circuit_breakers upstream_http_protocol_options \
      common_http_protocol_options http_protocol_options http2_protocol_options \
      typed_extension_protocol_options dns_refresh_rate dns_jitter dns_failure_refresh_rate respect_dns_ttl \
      dns_lookup_family cleanup_interval upstream_bind_config common_lb_config transport_socket \
      transport_socket_matches protocol_selection upstream_connection_options \
      close_connections_on_host_health_failure original_dst_lb_config least_request_lb_config \
      round_robin_lb_config ring_hash_lb_config maglev_lb_config load_balancing_policy \
      outlier_detection health_checks lb_subset_config metadata filters",
     "wait_for_warm_on_init typed_dns_resolver_config use_tcp_for_dns_lookups \
      stats_matcher per_connection_buffer_high_watermark_timeout ignore_health_on_host_removal \
      track_timeout_budgets track_cluster_stats preconnect_policy lrs_report_endpoint_metrics"),
    ("config.cluster.v3.Cluster.CustomClusterType", "name typed_config", ""),
    ("extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
     "dns_cache_config allow_insecure_cluster_options", ""),
    ("extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig",
     "name dns_lookup_family dns_refresh_rate host_ttl max_hosts",
     "dns_min_refresh_rate dns_failure_refresh_rate dns_query_timeout typed_dns_resolver_config"),
    ("extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig", "dns_cache_config", ""),
    ("extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
     "host_rewrite_literal host_rewrite_header", ""),
    ("config.cluster.v3.Cluster.EdsClusterConfig", "eds_config service_name", ""),
    ("config.cluster.v3.Filter", "name typed_config", ""),
    ("config.cluster.v3.Cluster.TransportSocketMatch", "name match transport_socket", ""),
    ("config.cluster.v3.Cluster.RefreshRate", "base_interval max_interval", ""),
    ("config.cluster.v3.Cluster.CommonLbConfig",
     "healthy_panic_threshold locality_weighted_lb_config zone_aware_lb_config consistent_hashing_lb_config \
      override_host_status ignore_new_hosts_until_first_hc",
     "update_merge_window close_connections_on_host_set_change"),
    ("config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig",
     "fail_traffic_on_panic routing_enabled min_cluster_size", ""),
    ("config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig",
     "use_hostname_for_hashing hash_balance_factor", ""),
    ("config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig", "", ""),
    ("config.cluster.v3.Cluster.LeastRequestLbConfig",
     "choice_count active_request_bias slow_start_config", ""),
    ("config.cluster.v3.Cluster.RoundRobinLbConfig", "slow_start_config", ""),
    ("config.cluster.v3.Cluster.SlowStartConfig", "slow_start_window aggression min_weight_percent", ""),
    ("config.cluster.v3.Cluster.RingHashLbConfig", "minimum_ring_size hash_function maximum_ring_size", ""),
    ("config.cluster.v3.Cluster.MaglevLbConfig", "table_size", ""),
    ("config.cluster.v3.LoadBalancingPolicy", "policies", ""),
    ("config.cluster.v3.LoadBalancingPolicy.Policy", "typed_extension_config", ""),
    ("extensions.load_balancing_policies.round_robin.v3.RoundRobin", "slow_start_config locality_lb_config",
     ""),
    ("extensions.load_balancing_policies.least_request.v3.LeastRequest",
     "choice_count active_request_bias slow_start_config locality_lb_config enable_full_scan \
      selection_method", ""),
    ("extensions.load_balancing_policies.random.v3.Random", "locality_lb_config", ""),
    ("extensions.load_balancing_policies.ring_hash.v3.RingHash",
     "hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing hash_balance_factor \
      consistent_hashing_lb_config locality_weighted_lb_config", ""),
    ("extensions.load_balancing_policies.maglev.v3.Maglev",
     "table_size consistent_hashing_lb_config locality_weighted_lb_config", ""),
    ("extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided", "", ""),
    ("extensions.load_balancing_policies.subset.v3.Subset",
     "fallback_policy default_subset subset_selectors allow_redundant_keys locality_weight_aware \
      panic_mode_any list_as_any subset_lb_policy", ""),
    ("extensions.load_balancing_policies.subset.v3.Subset.LbSubsetSelector",
     "keys fallback_policy fallback_keys_subset", ""),
    ("extensions.load_balancing_policies.wrr_locality.v3.WrrLocality", "endpoint_picking_policy", ""),
    ("extensions.load_balancing_policies.common.v3.SlowStartConfig",
     "slow_start_window aggression min_weight_percent", ""),
    ("extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig",
     "use_hostname_for_hashing hash_balance_factor hash_policy", ""),
    ("extensions.load_balancing_policies.common.v3.LocalityLbConfig",
     "zone_aware_lb_config locality_weighted_lb_config", ""),
    ("extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig", "", ""),
    ("extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig",
     "fail_traffic_on_panic routing_enabled min_cluster_size force_locality_direct_routing force_local_zone \
      locality_basis", ""),
    ("extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig.ForceLocalZone",
     "min_size", ""),
    ("config.cluster.v3.Cluster.OriginalDstLbConfig",
     "use_http_header http_header_name upstream_port_override", ""),
    ("config.cluster.v3.Cluster.LbSubsetConfig",
     "fallback_policy default_subset subset_selectors locality_weight_aware panic_mode_any list_as_any", ""),
    ("config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
     "keys fallback_policy fallback_keys_subset", ""),
    ("config.cluster.v3.OutlierDetection",
     "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx \
      enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume \
      success_rate_stdev_factor consecutive_gateway_failure enforcing_consecutive_gateway_failure \
      split_external_local_origin_errors consecutive_local_origin_failure \
      enforcing_consecutive_local_origin_failure enforcing_local_origin_success_rate \
      failure_percentage_threshold enforcing_failure_percentage \
      enforcing_failure_percentage_local_origin failure_percentage_minimum_hosts \
      failure_percentage_request_volume max_ejection_time max_ejection_time_jitter \
      successful_active_health_check_uneject_host always_eject_one_host", ""),
    ("config.cluster.v3.UpstreamConnectionOptions", "tcp_keepalive",
     "set_local_interface_name_on_upstream_connections happy_eyeballs_config"),
    ("config.cluster.v3.CircuitBreakers", "thresholds per_host_thresholds", ""),
    ("config.cluster.v3.CircuitBreakers.Thresholds",
     "priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining",
     "max_connection_pools"),
    ("config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget",
     "budget_percent min_retry_concurrency budget_interval", ""),
    ("config.endpoint.v3.ClusterLoadAssignment", "cluster_name endpoints policy", ""),
    ("config.endpoint.v3.ClusterLoadAssignment.Policy", "overprovisioning_factor", "endpoint_stale_after"),
    ("config.endpoint.v3.LocalityLbEndpoints", "locality lb_endpoints load_balancing_weight priority",
     "metadata proximity"),
    ("config.endpoint.v3.LbEndpoint", "health_status metadata load_balancing_weight endpoint", ""),
    ("config.endpoint.v3.Endpoint", "address additional_addresses hostname health_check_config",
     "observability_name"),
    ("config.endpoint.v3.Endpoint.AdditionalAddress", "address", ""),
    ("config.endpoint.v3.Endpoint.HealthCheckConfig",
     "port_value hostname address disable_active_health_check", ""),
    ("config.core.v3.HealthStatusSet", "statuses", ""),
    ("config.core.v3.HealthCheck",
     "timeout interval initial_jitter interval_jitter interval_jitter_percent unhealthy_threshold \
      healthy_threshold no_traffic_interval no_traffic_healthy_interval unhealthy_interval \
      unhealthy_edge_interval healthy_edge_interval transport_socket_match_criteria http_health_check \
      tcp_health_check grpc_health_check",
     "reuse_connection event_log_path event_logger event_service always_log_health_check_failures \
      always_log_health_check_success"),
    ("config.core.v3.HealthCheck.HttpHealthCheck",
     "host path send receive response_buffer_size request_headers_to_add request_headers_to_remove \
      expected_statuses retriable_statuses codec_client_type service_name_matcher method", ""),
    ("config.core.v3.HealthCheck.TcpHealthCheck", "send receive", ""),
    ("config.core.v3.HealthCheck.GrpcHealthCheck", "service_name authority initial_metadata", ""),
    ("config.core.v3.HealthCheck.Payload", "text binary", ""),
    ("extensions.upstreams.http.v3.HttpProtocolOptions",
     "common_http_protocol_options upstream_http_protocol_options explicit_http_config \
      use_downstream_protocol_config auto_config outlier_detection", ""),
    ("extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
     "http_protocol_options http2_protocol_options", ""),
    ("extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
     "http_protocol_options http2_protocol_options", ""),
    ("extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
     "http_protocol_options http2_protocol_options", ""),

    ("extensions.transport_sockets.raw_buffer.v3.RawBuffer", "", ""),
    ("extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context sni",
     "allow_renegotiation max_session_keys enforce_rsa_key_usage"),
    ("extensions.transport_sockets.tls.v3.DownstreamTlsContext",
     "common_tls_context require_client_certificate",
     "disable_stateless_session_resumption disable_stateful_session_resumption session_timeout \
      ocsp_staple_policy full_scan_certs_on_sni_mismatch prefer_client_ciphers"),
    ("extensions.transport_sockets.tls.v3.CommonTlsContext",
     "tls_params tls_certificates tls_certificate_sds_secret_configs validation_context \
      validation_context_sds_secret_config combined_validation_context alpn_protocols", ""),
    ("extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
     "default_validation_context validation_context_sds_secret_config", ""),
    ("extensions.transport_sockets.tls.v3.TlsParameters",
     "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites ecdh_curves", ""),
    ("extensions.transport_sockets.tls.v3.TlsCertificate", "certificate_chain private_key watched_directory",
     ""),
    ("extensions.transport_sockets.tls.v3.SdsSecretConfig", "name sds_config", ""),
    ("extensions.transport_sockets.tls.v3.CertificateValidationContext",
     "trusted_ca match_typed_subject_alt_names match_subject_alt_names trust_chain_verification \
      watched_directory verify_certificate_hash verify_certificate_spki crl \
      only_verify_leaf_cert_crl",
     "suppress_client_ca_list"),
    ("extensions.transport_sockets.tls.v3.SubjectAltNameMatcher", "san_type matcher", ""),
    ("extensions.transport_sockets.tls.v3.Secret", "name tls_certificate validation_context", ""),
];
