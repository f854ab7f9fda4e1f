//! What a server should not send: each thing is refused by name and reason, seen in `/config_dump`, and counted; the
//! last good configuration serves, and the rest of the same push applies.

use serde_json::Value;

use super::super::subscriptions::Subscriptions;
use super::*;

/// Pushes `bad` beside a good change, and checks all that must hold. `bad` is the resource of that name.
fn refused(kind: ResourceType, name: &str, bad: &str, field: &str, reason: &str) {
    let mut f = serving();
    let stats = Arc::new(Store::default());
    let mut counted = Subscriptions::new(stats.clone());
    counted.follow(&f.assembly);
    let good = eds("a").1.replace("type: EDS", "type: EDS, connect_timeout: 1s");
    let routes = |cluster: &str| {
        format!(
            "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: {cluster}}}}}]}}]}}"
        )
    };
    use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
    use mesh_xds::pb::envoy::config::listener::v3::Listener;
    use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
    let bad = (name, bad.to_owned());
    let (rejected, applied): (_, &[&str]) = match kind {
        ResourceType::Cluster => (f.push::<Cluster>(kind, &[bad, ("a", good)], &[]), &["publish a | l"]),
        ResourceType::Listener => {
            let other = http("m", "r");
            (f.push::<Listener>(kind, &[bad, other], &[]), &["publish a | l m"])
        }
        _ => {
            f.listeners(&[http("l", "r"), http("m", "q")], &[]);
            f.settle();
            counted.follow(&f.assembly);
            let other = ("q", routes("a").replace("name: r", "name: q"));
            (f.push::<RouteConfiguration>(kind, &[bad, other], &[]), &["publish a | l m"])
        }
    };
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0].name, name);
    let said = &rejected[0].reason;
    assert!(said.contains(field) && said.contains(reason), "{said}");
    assert_eq!(f.settle(), applied, "the rest of the push applies, and nothing of the bad resource");
    let dump = Value::Object(f.assembly.dump().into_values().flatten().collect());
    assert!(error_state(&dump, said), "no error_state with {said:?} in {dump:#}");
    let received = Received {
        kind,
        version: "1".to_owned(),
        nonce: String::new(),
        resources: Vec::new(),
        removed: Vec::new(),
        unreadable: Vec::new(),
        heartbeats: Vec::new(),
    };
    counted.judged(&f.assembly, &received, &rejected);
    let scope = match kind {
        ResourceType::Cluster => "cluster_manager.cds",
        ResourceType::Listener => "listener_manager.lds",
        _ => "http.s.rds.r",
    };
    assert_eq!(stats.subscription(scope).update_rejected.get(), 1, "{scope}");
}

/// Is there an `error_state` with these details?
fn error_state(dump: &Value, details: &str) -> bool {
    match dump {
        Value::Object(fields) => fields.iter().any(|(field, value)| {
            field == "error_state" && value["details"] == details && value["last_update_attempt"].is_string()
                || error_state(value, details)
        }),
        Value::Array(items) => items.iter().any(|item| error_state(item, details)),
        _ => false,
    }
}

#[test]
fn an_unknown_filter() {
    let (_, yaml) = http("l", "r");
    let filter = "{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.grpc_http1_bridge.v3.Config}}, ";
    let yaml = yaml.replace("http_filters: [", &format!("http_filters: [{filter}"));
    let name = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";
    refused(ResourceType::Listener, "l", &yaml, "http_filters[0].typed_config", name);
}

#[test]
fn a_bad_regular_expression() {
    let yaml = "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {safe_regex: {regex: '(x'}}, \
                route: {cluster: a}}]}]}";
    let field = "virtual_hosts[0].routes[0].match.safe_regex.regex";
    refused(ResourceType::Route, "r", yaml, field, "\"(x\" is not a regular expression: unclosed group");
}

#[test]
fn a_secret_that_is_neither_there_nor_to_be_asked_for() {
    let yaml = "{name: b, transport_socket: {name: tls, typed_config: {'@type': \
                type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
                common_tls_context: {tls_certificate_sds_secret_configs: [{name: nowhere}]}}}}";
    refused(ResourceType::Cluster, "b", yaml, "tls_certificate_sds_secret_configs", "nowhere");
}

#[test]
fn endpoints_of_a_server_that_is_no_cluster_are_not_waited_for() {
    let mut f = serving();
    let of = "{name: b, type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC, \
              grpc_services: [{envoy_grpc: {cluster_name: nowhere}}]}}}}";
    assert_eq!(f.clusters(&[("b", of.to_owned())], &[]), []);
    assert_eq!(f.settle(), ["publish a b | l"]);
}

#[test]
fn a_route_to_a_cluster_that_nobody_knows_is_taken_and_holds_nothing_up() {
    let mut f = serving();
    f.routes("r", "nowhere");
    assert_eq!(f.settle(), ["routes r"]);
}

#[test]
fn a_message_that_is_cut_off() {
    let mut f = serving();
    let body = vec![0x0a, 0x7f, b'x'];
    let resource = Resource { name: "a".to_owned(), version: String::new(), body, ttl: None };
    let received = Received {
        kind: CLUSTER,
        version: "9".to_owned(),
        nonce: String::new(),
        resources: vec![resource],
        removed: Vec::new(),
        unreadable: Vec::new(),
        heartbeats: Vec::new(),
    };
    let rejected = f.assembly.receive(&received, f.now);
    assert!(rejected[0].reason.starts_with("cannot be read: "), "{rejected:?}");
    assert_eq!(f.settle(), [""; 0]);
}

#[test]
fn a_server_that_gives_old_versions_to_new_content_is_believed_by_content() {
    let mut f = serving();
    let changed = |seconds: u32| {
        ("a", eds("a").1.replace("type: EDS", &format!("type: EDS, connect_timeout: {seconds}s")))
    };
    f.clusters(&[changed(1)], &[]);
    assert_eq!(f.settle(), ["publish a | l"]);
    // Always the same version, sometimes other content.
    f.pushes = 0;
    f.clusters(&[changed(2)], &[]);
    assert_eq!(f.settle(), ["publish a | l"]);
    f.pushes = 0;
    f.clusters(&[changed(2)], &[]);
    assert_eq!(f.settle(), [""; 0]);
}

#[test]
fn what_does_not_come_in_time_is_counted_once_under_its_name() {
    let mut f = Fixture::new();
    let stats = Arc::new(Store::default());
    let mut counted = Subscriptions::new(stats.clone());
    f.clusters(&[eds("a")], &[]);
    f.settle();
    f.wait(15);
    f.settle();
    f.listeners(&[http("l", "r")], &[]);
    f.settle();
    counted.follow(&f.assembly);
    f.wait(15);
    f.settle();
    f.settle();
    let cluster = stats.cluster("a");
    counted.late(&f.assembly.take_late());
    assert_eq!(cluster.init_fetch_timeout.get(), 1);
    assert_eq!(stats.subscription("http.s.rds.r").init_fetch_timeout.get(), 1);
    f.wait(60);
    f.settle();
    counted.late(&f.assembly.take_late());
    assert_eq!(cluster.init_fetch_timeout.get(), 1);
}
