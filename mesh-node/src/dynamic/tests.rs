//! What serves when, and what is refused.

mod bad_input;
mod extensions;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_xds::client::{Received, Rejected, Resource, ResourceType, Wanted};
use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node};

use super::*;
use crate::model::cluster::Discovery;
use crate::model::source::{Dynamic, GrpcServer, GrpcSource, GrpcTarget, Need, NeedKind, Source};
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;

const CLUSTER: ResourceType = ResourceType::Cluster;

/// An assembly whose resources all come by ADS.
struct Fixture {
    assembly: Assembly,
    now: Instant,
    pushes: u32,
}

pub(super) fn compiler() -> Arc<Compiler> {
    let stats = Arc::new(Store::default());
    let log_files = LogFiles::start(stats.filesystem().clone()).unwrap();
    Arc::new(Compiler::new(stats, log_files))
}

fn ads() -> Dynamic {
    let target = GrpcTarget::Cluster("xds".into());
    let server = GrpcServer {
        target,
        authority: "xds".into(),
        metadata: Vec::new(),
        tokens: Vec::new(),
        max_message_bytes: None,
    };
    let all = Some((Source::Ads, Some(Duration::from_secs(15))));
    let ads = Some(GrpcSource { delta: true, poll: None, servers: vec![server] });
    Dynamic { ads, clusters: all.clone(), listeners: all, name_table: true, ..Dynamic::default() }
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        let mut assembly = Assembly::new(compiler(), ads(), Statics::default(), now);
        assembly.settle(now);
        Self { assembly, now, pushes: 0 }
    }

    /// Gives the assembly what a response holds, each resource as YAML.
    fn push<T: Message + Name + Default>(
        &mut self,
        kind: ResourceType,
        resources: &[(&str, String)],
        removed: &[&str],
    ) -> Vec<Rejected> {
        self.pushes += 1;
        let resource = |(name, yaml): &(&str, String)| {
            let message: T = from_node(&Node::parse(yaml).unwrap()).unwrap_or_else(|e| panic!("{e:?}"));
            let name = (*name).to_owned();
            Resource { name, version: String::new(), body: message.encode_to_vec(), ttl: None }
        };
        let received = Received {
            kind,
            version: self.pushes.to_string(),
            nonce: String::new(),
            resources: resources.iter().map(resource).collect(),
            removed: removed.iter().map(|&name| name.to_owned()).collect(),
            unreadable: Vec::new(),
            heartbeats: Vec::new(),
        };
        self.assembly.receive(&received, self.now)
    }

    fn clusters(&mut self, of: &[(&str, String)], removed: &[&str]) -> Vec<Rejected> {
        use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
        self.push::<Cluster>(CLUSTER, of, removed)
    }

    fn listeners(&mut self, of: &[(&str, String)], removed: &[&str]) -> Vec<Rejected> {
        use mesh_xds::pb::envoy::config::listener::v3::Listener;
        self.push::<Listener>(ResourceType::Listener, of, removed)
    }

    fn endpoints(&mut self, name: &str, port: u16) {
        use mesh_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
        let yaml = format!(
            "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 10.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
        );
        assert!(self.push::<ClusterLoadAssignment>(ResourceType::Endpoint, &[(name, yaml)], &[]).is_empty());
    }

    fn scope(&mut self, name: &str, key: &str, routes: &str, removed: &[&str]) -> Vec<Rejected> {
        use mesh_xds::pb::envoy::config::route::v3::ScopedRouteConfiguration;
        let yaml = format!(
            "{{name: {name}, route_configuration_name: {routes}, key: {{fragments: [{{string_key: {key}}}]}}}}"
        );
        self.push::<ScopedRouteConfiguration>(ResourceType::ScopedRoute, &[(name, yaml)], removed)
    }

    fn routes(&mut self, name: &str, cluster: &str) {
        use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
        let yaml = format!(
            "{{name: {name}, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: {cluster}}}}}]}}]}}"
        );
        assert!(self.push::<RouteConfiguration>(ResourceType::Route, &[(name, yaml)], &[]).is_empty());
    }

    /// Carries the steps out in the mind: `endpoints NAME`, `publish CLUSTERS | LISTENERS`, `routes NAME`.
    fn settle(&mut self) -> Vec<String> {
        let shown = |step: Step| match step {
            Step::Endpoints(name, _) => format!("endpoints {name}"),
            Step::Secret(name, secret) => format!("secret {name} {}", secret.is_some()),
            Step::Publish(of) => {
                let clusters: Vec<_> = of.clusters.iter().map(|c| &*c.name).collect();
                let listeners: Vec<_> = of.listeners.iter().map(|l| &*l.name).collect();
                format!("publish {} | {}", clusters.join(" "), listeners.join(" "))
            }
            Step::Routes(handle, table) => {
                handle.store(table.clone());
                format!("routes {}", table.name)
            }
            Step::Scopes(handle, table) => {
                let count = table.len();
                handle.store(table);
                format!("scopes {count}")
            }
            Step::Forget(name) => format!("forget {name}"),
            Step::Runtime(name, values) => {
                format!("runtime {name} {}", values.map_or(0, |values| values.len()))
            }
        };
        self.assembly.settle(self.now).into_iter().map(shown).collect()
    }

    fn wanted(&self, kind: ResourceType) -> Option<Wanted> {
        self.assembly.wanted().get(&(Source::Ads, kind)).cloned()
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

fn eds(name: &str) -> (&str, String) {
    (name, format!("{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}"))
}

fn http<'a>(name: &'a str, routes: &str) -> (&'a str, String) {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
    let yaml = format!(
        "{{name: {name}, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: \
         [{{filters: [{{name: h, typed_config: {{'@type': {hcm}, stat_prefix: s, rds: {{route_config_name: \
         {routes}, config_source: {{ads: {{}}}}}}, http_filters: [{router}]}}}}]}}]}}"
    );
    (name, yaml)
}

fn names(of: &[&str]) -> Option<Wanted> {
    Some(of.iter().copied().collect())
}

#[test]
fn a_configuration_comes_into_service_in_the_order_in_which_nothing_is_missed() {
    let mut f = Fixture::new();
    assert_eq!(f.wanted(CLUSTER), Some(Wanted::All));
    assert_eq!(f.wanted(ResourceType::Listener), None, "clusters come first");
    assert!(f.clusters(&[eds("a")], &[]).is_empty());
    assert_eq!(f.settle(), [""; 0], "no endpoints yet");
    assert_eq!(f.wanted(ResourceType::Endpoint), names(&["a"]));
    f.endpoints("a", 1);
    assert_eq!(f.settle(), ["endpoints a", "publish a | "]);
    assert_eq!(f.wanted(ResourceType::Listener), Some(Wanted::All));
    assert!(!f.assembly.has_started(f.now));
    f.listeners(&[http("l", "r")], &[]);
    assert_eq!(f.settle(), [""; 0], "no routes yet");
    assert_eq!(f.wanted(ResourceType::Route), names(&["r"]));
    assert!(!f.assembly.has_started(f.now));
    f.routes("r", "a");
    assert_eq!(f.settle(), ["publish a | l"]);
    assert!(f.assembly.has_started(f.now));
}

/// A fixture that serves listener `l` with routes `r` to cluster `a`.
fn serving() -> Fixture {
    let mut f = Fixture::new();
    f.clusters(&[eds("a")], &[]);
    f.endpoints("a", 1);
    f.settle();
    f.listeners(&[http("l", "r")], &[]);
    f.routes("r", "a");
    assert_eq!(f.settle(), ["publish a | l"]);
    f
}

#[test]
fn what_is_sent_again_unchanged_changes_nothing() {
    let mut f = serving();
    f.clusters(&[eds("a")], &[]);
    f.listeners(&[http("l", "r")], &[]);
    f.endpoints("a", 1);
    f.routes("r", "a");
    assert_eq!(f.settle(), [""; 0]);
}

#[test]
fn virtual_hosts_that_come_apart_join_their_table_and_leave_it() {
    use super::compile::Value;
    use mesh_xds::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
    let mut f = serving();
    let host = |domain: &str| {
        format!(
            "{{name: {domain}, domains: [{domain}], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}"
        )
    };
    let table =
        format!("{{name: r, virtual_hosts: [{}], vhds: {{config_source: {{ads: {{}}}}}}}}", host("own.test"));
    let domains = |f: &Fixture| -> Vec<String> {
        let Value::Routes(table) = &f.assembly.routes["r"].active.as_ref().unwrap().compiled.value else {
            panic!()
        };
        table.virtual_hosts.iter().map(|host| host.domains[0].to_string()).collect()
    };
    assert!(f.push::<RouteConfiguration>(ResourceType::Route, &[("r", table)], &[]).is_empty());
    assert_eq!(f.settle(), [""; 0], "its virtual hosts are awaited");
    assert_eq!(f.wanted(ResourceType::VirtualHost), Some(Wanted::All));
    let push = |f: &mut Fixture, name: &str, yaml: String, removed: &[&str]| {
        let given = [(name, yaml)];
        let given = if name.is_empty() { &given[..0] } else { &given[..] };
        f.push::<VirtualHost>(ResourceType::VirtualHost, given, removed)
    };
    assert!(push(&mut f, "r/one", host("one.test"), &[]).is_empty());
    assert_eq!(f.settle(), ["routes r"]);
    assert_eq!(domains(&f), ["own.test", "one.test"]);
    assert!(push(&mut f, "elsewhere/two", host("two.test"), &[]).is_empty());
    assert_eq!(f.settle(), [""; 0], "another table's");
    let bad = push(&mut f, "r/bad", "{name: b, domains: ['a*b'], routes: []}".to_owned(), &[]);
    assert!(bad[0].reason.contains("domains[0]"), "{bad:?}");
    push(&mut f, "r/same", host("one.test"), &[]);
    assert_eq!(f.settle(), [""; 0], "a domain that is there already");
    push(&mut f, "", String::new(), &["r/one"]);
    assert_eq!(f.settle(), [""; 0]);
    assert_eq!(domains(&f), ["own.test", "one.test"], "the other one of that domain");
    push(&mut f, "", String::new(), &["r/same"]);
    assert_eq!(f.settle(), ["routes r"]);
    assert_eq!(domains(&f), ["own.test"]);
}

#[test]
fn routes_to_a_new_cluster_wait_for_its_endpoints() {
    let mut f = serving();
    f.clusters(&[eds("b")], &[]);
    f.routes("r", "b");
    assert_eq!(f.settle(), [""; 0]);
    f.endpoints("b", 1);
    assert_eq!(f.settle(), ["endpoints b", "publish a b | l", "routes r"]);
}

#[test]
fn routes_and_endpoints_change_without_touching_listener_or_cluster() {
    let mut f = serving();
    f.endpoints("a", 2);
    assert_eq!(f.settle(), ["endpoints a"]);
    f.routes("r", "elsewhere");
    assert_eq!(f.settle(), ["routes r"], "a cluster that nobody knows is not waited for");
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_rest_of_its_push_applies() {
    let mut f = serving();
    let bad = ("bad", "{name: bad, lb_policy: CLUSTER_PROVIDED}".to_owned());
    let changed = ("a", eds("a").1.replace("type: EDS", "type: EDS, connect_timeout: 1s"));
    let rejected = f.clusters(&[bad, changed], &[]);
    let reason = "cluster.lb_policy: CLUSTER_PROVIDED is only for type ORIGINAL_DST".to_owned();
    assert_eq!(rejected, [Rejected { name: "bad".to_owned(), reason }]);
    assert_eq!(f.settle(), ["publish a | l"]);
    assert!(f.assembly.names(CLUSTER).contains("bad"), "a file that lacks it takes its error away");
    // The last good one serves on when a later version of it is bad.
    let rejected = f.clusters(&[("a", "{name: a, lb_policy: CLUSTER_PROVIDED}".to_owned())], &[]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(f.settle(), [""; 0]);
    let dump = f.assembly.dump();
    let shown = &dump["ClustersConfigDump"]["dynamic_active_clusters"][0];
    assert_eq!(shown["cluster"]["connect_timeout"], "1s");
    assert_eq!(shown["version_info"], "5");
    assert_eq!(shown["error_state"]["version_info"], "6");
    assert!(shown["error_state"]["details"].as_str().unwrap().contains("lb_policy"));
    // And the error goes with the next good one.
    f.clusters(&[eds("a")], &[]);
    assert!(f.assembly.dump()["ClustersConfigDump"]["dynamic_active_clusters"][0]["error_state"].is_null());
}

#[test]
fn a_listener_with_a_filter_that_is_not_built_is_refused_by_its_name() {
    let mut f = serving();
    let (name, yaml) = http("l", "r");
    let yaml = yaml.replace(
        "http_filters: [",
        "http_filters: [{name: w, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm}}, ",
    );
    let rejected = f.listeners(&[(name, yaml)], &[]);
    assert!(rejected[0].reason.contains("envoy.extensions.filters.http.wasm.v3.Wasm"), "{rejected:?}");
    assert_eq!(f.settle(), [""; 0]);
    assert!(f.assembly.dump()["ListenersConfigDump"]["dynamic_listeners"][0]["error_state"].is_object());
}

#[test]
fn nothing_waits_for_ever() {
    let mut f = Fixture::new();
    f.clusters(&[eds("a")], &[]);
    assert_eq!(f.settle(), [""; 0]);
    assert_eq!(f.assembly.next_deadline(f.now), Some(f.now + Duration::from_secs(15)));
    f.wait(15);
    assert_eq!(f.settle(), ["publish a | "], "without endpoints");
    f.listeners(&[http("l", "r")], &[]);
    assert_eq!(f.settle(), [""; 0]);
    f.wait(15);
    assert_eq!(f.settle(), ["publish a | l"], "without routes");
    assert!(f.assembly.has_started(f.now));
    // They may still come.
    f.routes("r", "a");
    f.endpoints("a", 1);
    f.settle();
    assert_eq!(f.assembly.next_deadline(f.now), None);
}

#[test]
fn a_server_that_says_nothing_does_not_hold_up_the_start() {
    let mut f = Fixture::new();
    f.wait(15);
    f.settle();
    assert_eq!(f.wanted(ResourceType::Listener), Some(Wanted::All));
    assert!(!f.assembly.has_started(f.now));
    f.wait(15);
    assert!(f.assembly.has_started(f.now));
}

#[test]
fn what_nothing_names_any_more_is_unsubscribed_and_forgotten() {
    let mut f = serving();
    f.clusters(&[], &["a"]);
    assert_eq!(f.settle(), ["publish  | l", "forget a"]);
    assert_eq!(f.wanted(ResourceType::Endpoint), None);
    f.listeners(&[], &["l"]);
    assert_eq!(f.settle(), ["publish  | "]);
    assert_eq!(f.wanted(ResourceType::Route), None);
}

#[test]
fn equal_resources_of_many_sidecars_are_compiled_once() {
    let compiler = compiler();
    let one = || {
        let now = Instant::now();
        let assembly = Assembly::new(compiler.clone(), ads(), Statics::default(), now);
        let mut f = Fixture { assembly, now, pushes: 0 };
        f.settle();
        f.clusters(&[eds("a")], &[]);
        f.endpoints("a", 1);
        f.settle();
        f
    };
    let (mut first, mut second) = (one(), one());
    let cluster = |f: &mut Fixture| f.assembly.assembled().clusters[0].clone();
    assert!(Arc::ptr_eq(&cluster(&mut first), &cluster(&mut second)));
    // A listener's drain is each sidecar's own, though the rest is shared.
    for f in [&mut first, &mut second] {
        f.listeners(&[http("l", "r")], &[]);
        f.routes("r", "a");
        f.settle();
    }
    let listener = |f: &mut Fixture| f.assembly.assembled().listeners[0].clone();
    let (first, second) = (listener(&mut first), listener(&mut second));
    assert!(Arc::ptr_eq(&first.filter_chains[0], &second.filter_chains[0]));
    assert!(!Arc::ptr_eq(&first.drain, &second.drain));
}

#[test]
fn static_resources_serve_from_the_start_and_are_not_replaced_by_a_server() {
    let compiler = compiler();
    let mut other = Fixture::new();
    other.clusters(&[("s", "{name: s}".to_owned())], &[]);
    other.settle();
    let fixed = other.assembly.assembled().clusters[0].clone();
    assert!(matches!(fixed.discovery, Discovery::Static));
    let statics = Statics { clusters: vec![(fixed, Vec::new())], listeners: Vec::new() };
    let now = Instant::now();
    let mut f = Fixture { assembly: Assembly::new(compiler, ads(), statics, now), now, pushes: 0 };
    assert_eq!(f.settle(), ["publish s | "]);
    let rejected = f.clusters(&[("s", "{name: s, connect_timeout: 1s}".to_owned())], &[]);
    assert_eq!(rejected[0].reason, "is a static resource of the bootstrap; use another name");
    assert_eq!(f.settle(), [""; 0]);
}

#[test]
fn a_secret_that_nobody_can_be_asked_for_holds_nothing_up() {
    let mut f = Fixture::new();
    let secret = "{name: default, sds_config: {api_config_source: {api_type: GRPC, grpc_services: \
                  [{envoy_grpc: {cluster_name: sds-grpc}}]}}}";
    let tls = format!(
        "{{name: t, transport_socket: {{name: tls, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{secret}]}}}}}}}}"
    );
    assert!(f.clusters(&[("t", tls.clone())], &[]).is_empty());
    assert_eq!(f.settle(), ["publish t | "]);
    // Of one that can be asked, the secret is waited for.
    f.clusters(&[("sds-grpc", "{name: sds-grpc}".to_owned())], &[]);
    f.settle();
    f.clusters(&[("t", tls.replace("{name: t,", "{name: t, connect_timeout: 1s,"))], &[]);
    assert_eq!(f.settle(), [""; 0]);
    let wanted = f.assembly.wanted();
    assert!(wanted.keys().any(|(_, kind)| *kind == ResourceType::Secret));
}

/// A listener whose requests find their routes by the header `x`.
fn scoped(name: &str) -> (&str, String) {
    let (_, yaml) = http(name, "none");
    let rds = "rds: {route_config_name: none, config_source: {ads: {}}}";
    let scoped = "scoped_routes: {name: s, rds_config_source: {ads: {}}, scope_key_builder: {fragments: \
                  [{header_value_extractor: {name: x, index: 0}}]}, scoped_rds: {scoped_rds_config_source: \
                  {ads: {}}}}";
    assert!(yaml.contains(rds));
    (name, yaml.replace(rds, scoped))
}

#[test]
fn scopes_wait_for_their_tables_and_those_that_served_serve_until_then() {
    let mut f = Fixture::new();
    f.clusters(&[eds("a")], &[]);
    f.endpoints("a", 1);
    f.settle();
    assert!(f.listeners(&[scoped("l")], &[]).is_empty());
    assert_eq!(f.settle(), [""; 0]);
    assert_eq!(f.wanted(ResourceType::ScopedRoute), Some(Wanted::All));
    assert!(f.scope("one", "k", "r1", &[]).is_empty());
    assert_eq!(f.settle(), [""; 0], "no table yet");
    assert_eq!(f.wanted(ResourceType::Route), names(&["r1"]));
    f.routes("r1", "a");
    assert_eq!(f.settle(), ["publish a | l"]);
    let scopes = f.assembly.assembled().scopes;
    assert_eq!(scopes.load().len(), 1);
    // Another table for the same key: the first one serves until it is there.
    assert!(f.scope("one", "k", "r2", &[]).is_empty());
    assert_eq!(f.settle(), [""; 0]);
    assert_eq!(f.wanted(ResourceType::Route), names(&["r1", "r2"]));
    f.routes("r2", "a");
    assert_eq!(f.settle(), ["scopes 1"]);
    assert_eq!(f.wanted(ResourceType::Route), names(&["r2"]));
    // A key can move to another scope in one response, and is refused while its owner stays.
    let refused = f.scope("two", "k", "r2", &[]);
    assert_eq!(refused[0].reason, "scoped_route.key: is that of \"one\" too; change one");
    assert!(f.scope("two", "k", "r2", &["one"]).is_empty());
    assert_eq!(f.settle(), ["scopes 1"]);
    // Without a listener that takes scopes they are forgotten.
    f.listeners(&[], &["l"]);
    assert_eq!(f.settle(), ["publish a | "]);
    assert_eq!((f.wanted(ResourceType::ScopedRoute), f.wanted(ResourceType::Route)), (None, None));
}

#[test]
fn listeners_wait_for_the_runtime_that_a_server_gives_and_no_longer_than_they_should() {
    use mesh_xds::pb::envoy::service::runtime::v3::Runtime;
    let layer = |patience| Need {
        kind: NeedKind::Runtime,
        name: "r".into(),
        scope: "runtime.rtds".into(),
        source: Source::Ads,
        patience: Some(Duration::from_secs(patience)),
        tables: None,
    };
    let fixture = || {
        let now = Instant::now();
        let dynamic = Dynamic { runtime: vec![layer(5)], ..ads() };
        let mut assembly = Assembly::new(compiler(), dynamic, Statics::default(), now);
        assembly.settle(now);
        let mut f = Fixture { assembly, now, pushes: 0 };
        assert!(f.clusters(&[], &[]).is_empty());
        f.settle();
        assert_eq!(f.wanted(ResourceType::Runtime), names(&["r"]));
        assert_eq!(f.wanted(ResourceType::Listener), None, "not yet");
        f
    };
    let mut f = fixture();
    let bad =
        f.push::<Runtime>(ResourceType::Runtime, &[("r", "{name: r, layer: {a: [1]}}".to_owned())], &[]);
    assert_eq!(bad[0].reason, "runtime.layer.a: must be a number, a boolean, a string or a struct");
    let good =
        f.push::<Runtime>(ResourceType::Runtime, &[("r", "{name: r, layer: {a: {b: 1}}}".to_owned())], &[]);
    assert!(good.is_empty(), "{good:?}");
    assert_eq!(f.settle(), ["runtime r 1"]);
    assert_eq!(f.wanted(ResourceType::Listener), Some(Wanted::All));
    f.push::<Runtime>(ResourceType::Runtime, &[], &["r"]);
    assert_eq!(f.settle(), ["runtime r 0"]);
    let mut late = fixture();
    late.wait(6);
    late.settle();
    assert_eq!(late.wanted(ResourceType::Listener), Some(Wanted::All));
}
