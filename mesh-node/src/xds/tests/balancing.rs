//! What a cluster's messages make of load balancing.

use super::try_cluster;
use crate::model::cluster::{
    Cluster, Fallback, HashFunction, HealthStatus, LbPolicy, LocalityBasis, SelectorFallback,
};
use crate::model::route::HashOn;

const TYPES: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies";

fn cluster(fields: &str) -> Cluster {
    try_cluster(&format!("{{name: c, {fields}}}")).unwrap()
}

/// A cluster with one policy as an extension.
fn typed(name: &str, message: &str, fields: &str) -> Cluster {
    cluster(&format!("load_balancing_policy: {{policies: [{}]}}", extension(name, message, fields)))
}

fn extension(name: &str, message: &str, fields: &str) -> String {
    let any = format!("{{'@type': {TYPES}.{name}.v3.{message}{fields}}}");
    format!("{{typed_extension_config: {{name: {name}, typed_config: {any}}}}}")
}

#[test]
fn both_forms_of_each_policy_mean_the_same() {
    let pairs = [
        (cluster("lb_policy: ROUND_ROBIN"), typed("round_robin", "RoundRobin", "")),
        (
            cluster(
                "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 5, active_request_bias: {default_value: 0.5, runtime_key: x}}",
            ),
            typed(
                "least_request",
                "LeastRequest",
                ", choice_count: 5, active_request_bias: {default_value: 0.5, runtime_key: x}",
            ),
        ),
        (cluster("lb_policy: RANDOM"), typed("random", "Random", "")),
        (
            cluster(
                "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 7, maximum_ring_size: 9, hash_function: MURMUR_HASH_2}",
            ),
            typed(
                "ring_hash",
                "RingHash",
                ", minimum_ring_size: 7, maximum_ring_size: 9, hash_function: MURMUR_HASH_2",
            ),
        ),
        (
            cluster("lb_policy: MAGLEV, maglev_lb_config: {table_size: 1009}"),
            typed("maglev", "Maglev", ", table_size: 1009"),
        ),
        (
            cluster("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED"),
            cluster(&format!(
                "type: ORIGINAL_DST, load_balancing_policy: {{policies: [{}]}}",
                extension("cluster_provided", "ClusterProvided", "")
            )),
        ),
    ];
    for (by_name, by_type) in pairs {
        assert_eq!(format!("{:?}", by_name.lb), format!("{:?}", by_type.lb));
    }
}

#[test]
fn the_defaults_are_those_of_envoy() {
    let LbPolicy::RingHash { minimum, maximum, function } = cluster("lb_policy: RING_HASH").lb else {
        panic!()
    };
    assert_eq!((minimum, maximum, function), (1024, 8_388_608, HashFunction::XxHash));
    let LbPolicy::Maglev { table_size } = cluster("lb_policy: MAGLEV").lb else { panic!() };
    assert_eq!(table_size, 65_537);
    let LbPolicy::LeastRequest { choices, active_request_bias, full_scan } =
        cluster("lb_policy: LEAST_REQUEST").lb
    else {
        panic!()
    };
    assert_eq!((choices, active_request_bias.now(), full_scan), (2, 1.0, false));
    for scan in [", selection_method: FULL_SCAN", ", enable_full_scan: true"] {
        let lb = typed("least_request", "LeastRequest", scan).lb;
        assert!(matches!(lb, LbPolicy::LeastRequest { full_scan: true, .. }), "{scan}");
    }
}

#[test]
fn settings_of_consistent_hashing_are_taken_from_either_place() {
    let settings = "consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_balance_factor: 150}";
    let all = [
        cluster(&format!("lb_policy: MAGLEV, common_lb_config: {{{settings}}}")),
        typed("maglev", "Maglev", &format!(", {settings}")),
        typed("ring_hash", "RingHash", &format!(", {settings}")),
        typed("ring_hash", "RingHash", ", use_hostname_for_hashing: true, hash_balance_factor: 150"),
    ];
    for cluster in all {
        let hashing = cluster.balancing.hashing;
        assert!(hashing.use_hostname && hashing.balance_factor == 150);
    }
    let own = ", consistent_hashing_lb_config: {hash_policy: [{connection_properties: {source_ip: true}, terminal: true}]}";
    let policies = typed("maglev", "Maglev", own).balancing.hashing.policies;
    assert!(matches!(policies[..], [ref policy] if policy.terminal && matches!(policy.on, HashOn::SourceIp)));
}

#[test]
fn localities_are_weighted_where_either_form_says_so() {
    let weighted = "locality_lb_config: {locality_weighted_lb_config: {}}";
    assert!(!cluster("lb_policy: RANDOM").locality_weighted);
    assert!(cluster("common_lb_config: {locality_weighted_lb_config: {}}").locality_weighted);
    for (name, message) in
        [("round_robin", "RoundRobin"), ("least_request", "LeastRequest"), ("random", "Random")]
    {
        assert!(typed(name, message, &format!(", {weighted}")).locality_weighted, "{name}");
    }
    for (name, message) in [("ring_hash", "RingHash"), ("maglev", "Maglev")] {
        assert!(typed(name, message, ", locality_weighted_lb_config: {}").locality_weighted, "{name}");
    }
    let inner = extension("least_request", "LeastRequest", "");
    let outer =
        typed("wrr_locality", "WrrLocality", &format!(", endpoint_picking_policy: {{policies: [{inner}]}}"));
    assert!(outer.locality_weighted && matches!(outer.lb, LbPolicy::LeastRequest { .. }));
}

#[test]
fn panic_serves_nobody_where_zone_awareness_says_so() {
    let zones = "zone_aware_lb_config: {min_cluster_size: 1, fail_traffic_on_panic: true}";
    assert!(cluster(&format!("common_lb_config: {{{zones}}}")).balancing.fail_on_panic);
    let typed = typed("random", "Random", &format!(", locality_lb_config: {{{zones}}}"));
    assert!(typed.balancing.fail_on_panic && !typed.locality_weighted);
    assert_eq!(typed.balancing.zones().min_cluster_size.now(), 1);
}

#[test]
fn zone_awareness_is_taken_from_either_form() {
    let whole = cluster("common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 49.6}}}");
    let zones = whole.balancing.zones();
    assert_eq!((zones.routing_enabled.now(), zones.min_cluster_size.now()), ((50, 100), 6));
    let of = |text: &str| {
        let zones = format!(", locality_lb_config: {{zone_aware_lb_config: {{{text}}}}}");
        typed("round_robin", "RoundRobin", &zones).balancing
    };
    assert_eq!(of("").zones().forced_from(), None);
    assert_eq!(of("force_locality_direct_routing: true").zones().forced_from(), Some(1));
    let both = "force_locality_direct_routing: true, force_local_zone: {min_size: 3}";
    assert_eq!(of(both).zones().forced_from(), Some(3));
    assert_eq!(of("locality_basis: HEALTHY_HOSTS_WEIGHT").zones().basis, LocalityBasis::HealthyWeight);
    let bad = "{name: c, common_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 101}}}}";
    assert!(try_cluster(bad).unwrap_err().contains("routing_enabled"));
}

#[test]
fn of_several_policies_the_first_that_is_known_counts() {
    let unknown = extension("pick_first", "PickFirst", "");
    let (first, second) = (extension("random", "Random", ""), extension("maglev", "Maglev", ""));
    let list = |policies: &[&str]| {
        format!("{{name: c, load_balancing_policy: {{policies: [{}]}}}}", policies.join(", "))
    };
    let chosen = try_cluster(&list(&[&unknown, &first, &second])).unwrap();
    assert!(matches!(chosen.lb, LbPolicy::Random));
    let none = try_cluster(&list(&[&unknown])).unwrap_err();
    assert!(none.contains("PickFirst is not supported by mesh-node"), "{none}");
    let both = "{name: c, common_lb_config: {locality_weighted_lb_config: {}}, load_balancing_policy: {policies: []}}";
    assert!(try_cluster(both).unwrap_err().contains("cannot be given beside load_balancing_policy"));
}

#[test]
fn slow_start_is_taken_from_either_form_and_needs_a_window() {
    let ramp = "slow_start_config: {slow_start_window: 20s, aggression: {default_value: 2, runtime_key: '('}, min_weight_percent: {value: 25}}";
    let all = [
        cluster(&format!("round_robin_lb_config: {{{ramp}}}")),
        cluster(&format!("lb_policy: LEAST_REQUEST, least_request_lb_config: {{{ramp}}}")),
        typed("round_robin", "RoundRobin", &format!(", {ramp}")),
        typed("least_request", "LeastRequest", &format!(", {ramp}")),
    ];
    for cluster in all {
        let slow_start = cluster.balancing.slow_start.unwrap();
        assert_eq!(
            (slow_start.window.as_secs(), slow_start.aggression.now(), slow_start.least),
            (20, 2.0, 0.25)
        );
    }
    assert!(cluster("round_robin_lb_config: {slow_start_config: {}}").balancing.slow_start.is_none());
    let backwards = "{name: c, round_robin_lb_config: {slow_start_config: {aggression: {default_value: 0, runtime_key: x}}}}";
    assert!(try_cluster(backwards).unwrap_err().contains("must be above 0"));
}

#[test]
fn outlier_detection_has_envoys_defaults_and_takes_every_field() {
    let defaults = cluster("outlier_detection: {}").outlier_detection.unwrap();
    assert_eq!((defaults.interval.as_secs(), defaults.base_ejection_time.as_secs()), (10, 30));
    assert_eq!((defaults.max_ejection_time.as_secs(), defaults.max_ejection_percent), (300, 10));
    assert_eq!((defaults.consecutive_5xx.failures, defaults.consecutive_5xx.enforcing), (5, 100));
    assert_eq!(defaults.consecutive_gateway_failure.enforcing, 0);
    assert_eq!(defaults.consecutive_local_origin_failure.enforcing, 100);
    assert_eq!((defaults.success_rate.minimum_hosts, defaults.success_rate.deviations), (5, 1.9));
    assert_eq!((defaults.failure_percentage.threshold, defaults.failure_percentage.enforcing), (85.0, 0));
    assert!(defaults.uneject_when_checked && !defaults.split_local_origin && !defaults.always_eject_one_host);
    let all = cluster(
        "outlier_detection: {consecutive_5xx: 1, interval: 2s, base_ejection_time: 3s, max_ejection_percent: 4, \
         enforcing_consecutive_5xx: 5, enforcing_success_rate: 6, success_rate_minimum_hosts: 7, \
         success_rate_request_volume: 8, success_rate_stdev_factor: 9000, consecutive_gateway_failure: 10, \
         enforcing_consecutive_gateway_failure: 11, split_external_local_origin_errors: true, \
         consecutive_local_origin_failure: 12, enforcing_consecutive_local_origin_failure: 13, \
         enforcing_local_origin_success_rate: 14, failure_percentage_threshold: 15, \
         enforcing_failure_percentage: 16, enforcing_failure_percentage_local_origin: 17, \
         failure_percentage_minimum_hosts: 18, failure_percentage_request_volume: 19, max_ejection_time: 20s, \
         max_ejection_time_jitter: 21s, successful_active_health_check_uneject_host: false, \
         always_eject_one_host: true}",
    );
    let all = format!("{:?}", all.outlier_detection.unwrap());
    for expected in [
        "interval: 2s, base_ejection_time: 3s, max_ejection_time: 20s, max_ejection_time_jitter: 21s, \
         max_ejection_percent: 4, always_eject_one_host: true",
        "consecutive_5xx: Consecutive { failures: 1, enforcing: 5 }",
        "consecutive_gateway_failure: Consecutive { failures: 10, enforcing: 11 }",
        "consecutive_local_origin_failure: Consecutive { failures: 12, enforcing: 13 }",
        "minimum_hosts: 7, request_volume: 8, deviations: 9.0, enforcing: 6, enforcing_local_origin: 14",
        "threshold: 15.0, minimum_hosts: 18, request_volume: 19, enforcing: 16, enforcing_local_origin: 17",
        "uneject_when_checked: false",
    ] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
}

#[test]
fn health_checks_have_envoys_defaults_and_take_every_field() {
    let base = "timeout: 1s, interval: 2s, unhealthy_threshold: 3, healthy_threshold: 4";
    let check = |fields: &str| {
        format!("{:?}", cluster(&format!("health_checks: [{{{base}, {fields}}}]")).health_check.unwrap())
    };
    let plain = check("http_health_check: {path: /up}");
    for expected in [
        "host: None, path: \"/up\", method: GET, body: [], receive: [], response_buffer_bytes: 1024, expected: [(200, 201)], retriable: []",
        "timeout: 1s, unhealthy_threshold: 3, healthy_threshold: 4",
        "interval: 2s, jitter: 0ns, jitter_percent: 0, no_traffic: 60s, no_traffic_healthy: 60s, unhealthy: 2s, unhealthy_edge: 2s, healthy_edge: 2s",
    ] {
        assert!(plain.contains(expected), "{expected} in {plain}");
    }
    let all = check(
        "initial_jitter: 5s, interval_jitter: 6s, interval_jitter_percent: 7, no_traffic_interval: 8s, \
         no_traffic_healthy_interval: 9s, unhealthy_interval: 10s, unhealthy_edge_interval: 11s, \
         healthy_edge_interval: 12s, transport_socket_match_criteria: {a: b}, \
         http_health_check: {host: h, path: /x, method: POST, send: {text: 6162}, receive: [{text: '63'}, {binary: ZGU=}], \
         response_buffer_size: 9, expected_statuses: [{start: 200, end: 300}], \
         retriable_statuses: [{start: 503, end: 504}], request_headers_to_add: [{header: {key: x-a, value: b}}], \
         request_headers_to_remove: [user-agent], codec_client_type: HTTP2, service_name_matcher: {prefix: s}}",
    );
    for expected in [
        "initial_jitter: 5s, interval: 2s, jitter: 6s, jitter_percent: 7, no_traffic: 8s, no_traffic_healthy: 9s, unhealthy: 10s, unhealthy_edge: 11s, healthy_edge: 12s",
        "transport_match: Some([(\"a\", \"b\")])",
        "host: Some(\"h\"), path: \"/x\", method: POST, body: [97, 98], receive: [[99], [100, 101]], response_buffer_bytes: 9",
        "expected: [(200, 300)], retriable: [(503, 504)], add: {\"x-a\": \"b\"}, remove: [\"user-agent\"], http2: true",
        "Prefix(\"s\")",
    ] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
    let tcp = check("tcp_health_check: {send: {text: '00'}, receive: [{text: ff}]}");
    assert!(tcp.contains("Tcp { send: [0], receive: [[255]] }"), "{tcp}");
    let h2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}";
    let grpc = cluster(&format!(
        "{h2}, health_checks: [{{{base}, grpc_health_check: {{service_name: s, authority: a, initial_metadata: [{{header: {{key: k, value: v}}}}]}}}}]"
    ));
    let grpc = format!("{:?}", grpc.health_check.unwrap());
    assert!(
        grpc.contains("Grpc { service: \"s\", authority: Some(\"a\"), metadata: {\"k\": \"v\"} }"),
        "{grpc}"
    );
    let ignoring = cluster(&format!(
        "common_lb_config: {{ignore_new_hosts_until_first_hc: true}}, health_checks: [{{{base}, tcp_health_check: {{}}}}]"
    ));
    assert!(ignoring.health_check.unwrap().ignore_new_hosts);
}

#[test]
fn a_health_check_that_cannot_be_made_is_refused() {
    let base = "timeout: 1s, interval: 2s, unhealthy_threshold: 3, healthy_threshold: 4";
    for (fields, expected) in [
        ("grpc_health_check: {}", "grpc_health_check: needs a cluster that speaks HTTP/2"),
        ("http_health_check: {path: no}", "http_health_check.path: \"no\" is not a path"),
        (
            "http_health_check: {path: /, expected_statuses: [{start: 300, end: 200}]}",
            "expected_statuses[0]: must be a range",
        ),
        ("tcp_health_check: {send: {text: xyz}}", "send.text: \"xyz\" is not hexadecimal"),
        (
            "http_health_check: {path: /, request_headers_to_add: [{header: {key: a, value: '%PROTOCOL%'}}]}",
            "request_headers_to_add[0].header: must be a constant text",
        ),
    ] {
        let error = try_cluster(&format!("{{name: c, health_checks: [{{{base}, {fields}}}]}}")).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let two = format!(
        "{{name: c, health_checks: [{{{base}, tcp_health_check: {{}}}}, {{{base}, tcp_health_check: {{}}}}]}}"
    );
    assert!(try_cluster(&two).unwrap_err().contains("several health checks"));
}

#[test]
fn endpoints_say_how_they_are_checked_and_clusters_which_hosts_sessions_keep() {
    let endpoint = "{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1}}, health_check_config: {port_value: 2, hostname: h, disable_active_health_check: true}}}";
    let cluster = cluster(&format!(
        "common_lb_config: {{override_host_status: {{statuses: [DRAINING]}}}}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}"
    ));
    let check = cluster.load_assignment.localities[0].endpoints[0].check.clone().unwrap();
    assert_eq!((check.port, check.hostname.as_deref(), check.disabled), (Some(2), Some("h"), true));
    let statuses = cluster.balancing.override_statuses;
    assert!(statuses.has(HealthStatus::Draining) && !statuses.has(HealthStatus::Healthy));
}

#[test]
fn limits_of_hosts_budget_intervals_and_more_source_addresses_are_taken() {
    let limits = cluster(
        "circuit_breakers: {thresholds: [{track_remaining: true, retry_budget: {budget_interval: 0.1s}}], \
         per_host_thresholds: [{max_connections: 3}]}",
    );
    let [default, high] = limits.circuit_breakers;
    assert!(default.track_remaining && limits.remaining_stats.is_some());
    assert_eq!(default.budget_interval.unwrap().as_millis(), 100);
    assert_eq!((default.max_connections_per_host, high.max_connections_per_host), (Some(3), None));
    let more = "{name: c, circuit_breakers: {per_host_thresholds: [{max_requests: 3}]}}";
    assert!(try_cluster(more).unwrap_err().contains("only max_connections is possible"));
    let bound = cluster(
        "upstream_bind_config: {source_address: {address: 10.0.0.1, port_value: 0}, \
         extra_source_addresses: [{address: {address: '::1', port_value: 0}}]}",
    );
    let source = |remote: &str| bound.bind_source(remote.parse().unwrap()).unwrap().ip().to_string();
    assert_eq!((source("10.9.9.9:1"), source("[::2]:1")), ("10.0.0.1".to_owned(), "::1".to_owned()));
}

#[test]
fn subsets_are_taken_with_their_fallbacks() {
    let config = cluster(
        "lb_subset_config: {fallback_policy: DEFAULT_SUBSET, default_subset: {stage: prod, n: 1}, panic_mode_any: true, \
         list_as_any: true, locality_weight_aware: true, subset_selectors: [{keys: [b, a], fallback_policy: KEYS_SUBSET, \
         fallback_keys_subset: [a]}, {keys: [c]}]}",
    );
    let subsets = config.balancing.subsets.unwrap();
    assert_eq!(subsets.fallback, Fallback::Default);
    assert_eq!(subsets.default_subset.len(), 2);
    assert!(subsets.panic_mode_any && subsets.list_as_any && subsets.locality_weight_aware);
    assert_eq!(subsets.selectors[0].keys, ["a".into(), "b".into()]);
    assert_eq!(subsets.selectors[0].fallback, SelectorFallback::Keys(vec!["a".into()]));
    assert_eq!(subsets.selectors[1].fallback, SelectorFallback::NotDefined);
    let inner = extension("random", "Random", "");
    let by_type = typed(
        "subset",
        "Subset",
        &format!(
            ", fallback_policy: ANY_ENDPOINT, allow_redundant_keys: true, subset_selectors: [{{keys: [a]}}], subset_lb_policy: {{policies: [{inner}]}}"
        ),
    );
    assert!(matches!(by_type.lb, LbPolicy::Random));
    let by_type = by_type.balancing.subsets.unwrap();
    assert!(
        by_type.fallback == Fallback::Any && by_type.allow_redundant_keys && by_type.selectors.len() == 1
    );
    let all = "{name: c, lb_subset_config: {subset_selectors: [{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}]}}";
    assert!(try_cluster(all).unwrap_err().contains("must be some of the selector's keys, and not all"));
}
