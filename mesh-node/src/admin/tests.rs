use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::*;

struct Fake {
    store: Store,
    runtime: Runtime,
    clusters: Arc<ClusterManager>,
    snapshot: Arc<Snapshot>,
    stage: Mutex<Stage>,
    logging: Logging,
    calls: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn call(&self, name: &'static str) {
        self.calls.lock().unwrap().push(name);
    }
}

impl AdminState for Fake {
    fn store(&self) -> &Store {
        &self.store
    }
    fn clusters(&self, workload: Option<&str>) -> Option<Arc<ClusterManager>> {
        workload.is_none_or(|name| name == "default/web").then(|| self.clusters.clone())
    }
    fn runtime(&self) -> &Runtime {
        &self.runtime
    }
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }
    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap()
    }
    fn bootstrap(&self) -> (Value, SystemTime) {
        let bootstrap = json!({
            "node": { "id": "n" },
            "static_resources": {
                "clusters": [{ "name": "back" }, { "name": "other" }],
                "listeners": [{ "name": "main", "filter_chains": [{ "filters": [{
                    "typed_config": { "route_config": { "name": "local" } },
                }] }] }],
                "secrets": [{ "name": "cert", "tls_certificate": {
                    "certificate_chain": { "inline_string": "public" },
                    "private_key": { "inline_string": "very secret", "inline_bytes": "c2VjcmV0" },
                } }],
            },
        });
        (bootstrap, UNIX_EPOCH)
    }
    fn name_table(&self, workload: Option<&str>) -> Option<Value> {
        workload.is_none().then(|| json!({ "table": {} }))
    }
    fn dynamic(
        &self,
        workload: Option<&str>,
    ) -> Option<BTreeMap<&'static str, serde_json::Map<String, Value>>> {
        if workload.is_some_and(|name| name != "default/web") {
            return None;
        }
        let clusters = json!({
            "version_info": "7",
            "dynamic_active_clusters": [{ "version_info": "7", "cluster": { "name": "pushed" } }],
        });
        let chain =
            json!({ "filters": [{ "typed_config": { "route_config": { "name": "in a pushed one" } } }] });
        let listeners = json!({
            "dynamic_listeners": [{ "name": "l", "active_state": { "listener": { "filter_chains": [chain] } } }],
        });
        let lb_endpoint = |address: &str| {
            let address = json!({ "socket_address": { "address": address, "port_value": 80 } });
            json!({ "endpoint": { "address": address } })
        };
        let endpoints = json!({ "dynamic_endpoint_configs": [{ "endpoint_config": {
                "cluster_name": "pushed",
                "endpoints": [{ "lb_endpoints": [lb_endpoint("10.0.0.1"), lb_endpoint("10.0.0.2")] }],
            } }] });
        let object = |value: Value| value.as_object().unwrap().clone();
        Some(BTreeMap::from([
            ("ClustersConfigDump", object(clusters)),
            ("ListenersConfigDump", object(listeners)),
            ("EndpointsConfigDump", object(endpoints)),
        ]))
    }
    fn settings(&self) -> Value {
        json!({ "concurrency": 2 })
    }
    fn uptime(&self) -> Duration {
        Duration::from_secs(8)
    }
    fn workloads(&self) -> Vec<WorkloadView> {
        vec![WorkloadView {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "pod".into(),
            service_account: "sa".into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
            connections: 1,
            max_connections: 0,
            buffered_bytes: 4096,
            max_buffered_bytes: 1 << 20,
            refused: [
                ("cx_refused_by_max_connections", 0),
                ("cx_refused_by_max_buffered_bytes", 2),
                ("rq_refused_by_max_buffered_bytes", 0),
                ("retries_given_up", 0),
                ("buffers_pressed", 1),
            ],
            counters: vec![
                KernelCount { hook: "connect", reason: "steered_outbound", value: 3 },
                KernelCount { hook: "accel", reason: "accelerated", value: 2 },
                KernelCount { hook: "accel", reason: "kept_peer", value: 4 },
                KernelCount { hook: "accel", reason: "left_stream", value: 1 },
            ],
            past_tcp: PastTcpView {
                allowed: true,
                hand_off_allowed: false,
                messages: 5,
                bytes: 70,
                known: vec![
                    KnownView { port: Some(80), program: None, seen: 4, enough: 3, never: None },
                    KnownView { port: Some(81), program: None, seen: 1, enough: 3, never: None },
                    KnownView { port: None, program: None, seen: 0, enough: 3, never: Some("tcp_blocking") },
                    KnownView {
                        port: None,
                        program: Some("/bin/curl".into()),
                        seen: 3,
                        enough: 3,
                        never: None,
                    },
                ],
            },
        }]
    }
    fn acceleration(&self) -> AccelerationView {
        AccelerationView {
            on: true,
            hand_off: true,
            refused: None,
            tests: vec![("fionread".into(), "as TCP".into()), ("splice".into(), "cannot".into())],
        }
    }
    fn accelerate(&self, on: bool) {
        self.call(if on { "accelerate" } else { "leave on TCP" });
    }
    fn hand_off(&self, on: bool) {
        self.call(if on { "hand off" } else { "keep" });
    }
    fn logging(&self) -> &Logging {
        &self.logging
    }
    fn reopen_logs(&self) {
        self.call("reopen");
    }
    fn drain_listeners(&self, inbound_only: bool) {
        self.call(if inbound_only { "drain inbound" } else { "drain" });
    }
    fn fail_health_checks(&self, fail: bool) {
        *self.stage.lock().unwrap() = if fail { Stage::Draining } else { Stage::Live };
    }
    fn shut_down(&self) {
        self.call("shut down");
    }
}

fn fake() -> Fake {
    Fake {
        store: Store::default(),
        runtime: Runtime::default(),
        clusters: Arc::new(ClusterManager::new(1)),
        snapshot: Arc::default(),
        stage: Mutex::new(Stage::Live),
        logging: Logging::new("info", |_| {}),
        calls: Mutex::default(),
    }
}

fn get(state: &Fake, path: &str) -> reply::Reply {
    pages::answer(state, &http::Method::GET, &path.parse().unwrap())
}

fn post(state: &Fake, path: &str) -> reply::Reply {
    pages::answer(state, &http::Method::POST, &path.parse().unwrap())
}

fn configs(reply: &reply::Reply) -> Vec<Value> {
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    body["configs"].as_array().unwrap().clone()
}

#[test]
fn probes_see_readiness_change() {
    let state = fake();
    assert_eq!((get(&state, "/ready").status.as_u16(), &*get(&state, "/ready").body), (200, "LIVE\n"));
    assert_eq!(post(&state, "/healthcheck/fail").body, "OK\n");
    assert_eq!((get(&state, "/ready").status.as_u16(), &*get(&state, "/ready").body), (503, "DRAINING\n"));
    post(&state, "/healthcheck/ok");
    assert_eq!(get(&state, "/ready").status, 200);
}

#[test]
fn a_page_that_changes_state_refuses_get() {
    let state = fake();
    let reply = get(&state, "/quitquitquit");
    assert_eq!((reply.status.as_u16(), &*reply.body), (405, "Method GET not allowed, POST required."));
    assert!(state.calls.lock().unwrap().is_empty());
    for path in ["/quitquitquit", "/drain_listeners", "/drain_listeners?inboundonly", "/reopen_logs"] {
        assert_eq!(post(&state, path).body, "OK\n");
    }
    assert_eq!(*state.calls.lock().unwrap(), ["shut down", "drain", "drain inbound", "reopen"]);
}

#[test]
fn an_unknown_path_gets_the_list_of_pages() {
    let reply = get(&fake(), "/nope");
    assert_eq!(reply.status, 404);
    assert!(reply.body.starts_with("invalid path. admin commands are:\n  /: "), "{}", reply.body);
    assert!(reply.body.contains("\n  /quitquitquit (POST): "));
    assert_eq!(get(&fake(), "/help").body, reply.body.strip_prefix("invalid path. ").unwrap());
}

#[test]
fn the_dump_has_envoys_parts_and_no_secret() {
    let reply = get(&fake(), "/config_dump");
    assert!(!reply.body.contains("very secret") && !reply.body.contains("c2VjcmV0"), "{}", reply.body);
    assert!(reply.body.contains("[redacted]") && reply.body.contains("public"));
    let configs = configs(&reply);
    let types: Vec<_> =
        configs.iter().map(|c| c["@type"].as_str().unwrap().rsplit('.').next().unwrap()).collect();
    assert_eq!(
        types,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "ListenersConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    assert_eq!(
        configs[1]["static_clusters"][0],
        json!({
            "cluster": { "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "back" },
            "last_updated": "1970-01-01T00:00:00.000Z",
        })
    );
    assert_eq!(configs[3]["static_route_configs"][0]["route_config"]["name"], "local");
    assert_eq!(configs[4]["static_secrets"][0]["name"], "cert");
}

#[test]
fn the_dump_can_be_narrowed() {
    let state = fake();
    let dump = configs(&get(&state, "/config_dump?name_regex=%5Eback%24"));
    assert_eq!(dump[1]["static_clusters"].as_array().unwrap().len(), 1);
    let dump = configs(&get(&state, "/config_dump?resource=static_clusters&mask=cluster.name"));
    assert_eq!(
        dump[0],
        json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
            "cluster": { "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "back" },
        })
    );
    assert_eq!(get(&state, "/config_dump?resource=dynamic_active_secrets").body, "{}\n");
    let dump = configs(&get(&state, "/config_dump?mask=bootstrap.node"));
    assert_eq!(dump[0]["bootstrap"], json!({ "node": { "id": "n" } }));
    for (path, status, text) in [
        ("/config_dump?resource=nope", 404, "nope not found in config dump"),
        ("/config_dump?mask=nope", 400, "FieldMask nope could not be successfully applied to any configs."),
        (
            "/config_dump?resource=bootstrap",
            400,
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        ),
    ] {
        let reply = get(&state, path);
        assert_eq!((reply.status.as_u16(), &*reply.body), (status, text));
    }
}

#[test]
fn statistics_are_filtered_and_formatted() {
    let state = fake();
    let cluster = state.store.cluster("back");
    cluster.count_response(200);
    assert_eq!(get(&state, "/stats?filter=rq_200").body, "cluster.back.upstream_rq_200: 1\n");
    assert_eq!(
        get(&state, "/stats?filter=rq_200&format=json").body,
        "{\"stats\":[{\"name\":\"cluster.back.upstream_rq_200\",\"value\":1}]}"
    );
    let prometheus = "# TYPE envoy_cluster_upstream_rq counter\n\
                      envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"back\"} 1\n";
    assert_eq!(get(&state, "/stats/prometheus?filter=rq_200").body, prometheus);
    assert_eq!(get(&state, "/stats?filter=rq_200&format=prometheus").body, prometheus);
    let ours = "# TYPE mesh_kernel_total counter\n\
                mesh_kernel_total{namespace=\"ns\",pod=\"pod\",hook=\"connect\",reason=\"steered_outbound\"} 3\n\
                mesh_kernel_total{namespace=\"ns\",pod=\"pod\",hook=\"accel\",reason=\"accelerated\"} 2\n\
                mesh_kernel_total{namespace=\"ns\",pod=\"pod\",hook=\"accel\",reason=\"kept_peer\"} 4\n\
                mesh_kernel_total{namespace=\"ns\",pod=\"pod\",hook=\"accel\",reason=\"left_stream\"} 1\n";
    assert_eq!(get(&state, "/stats/prometheus?filter=mesh_kernel").body, ours);
    let limits = "# TYPE mesh_limit_total counter\n\
                  mesh_limit_total{namespace=\"ns\",pod=\"pod\",reason=\"cx_refused_by_max_buffered_bytes\"} 2\n\
                  mesh_limit_total{namespace=\"ns\",pod=\"pod\",reason=\"buffers_pressed\"} 1\n";
    assert_eq!(get(&state, "/stats/prometheus?filter=mesh_limit").body, limits);
    assert!(get(&state, "/stats?filter=server.uptime").body.ends_with("server.uptime: 8\n"));
    assert_eq!(get(&state, "/stats?filter=((").status, 400);
    assert_eq!(get(&state, "/stats?format=bad").status, 400);
    post(&state, "/reset_counters");
    assert_eq!(get(&state, "/stats?usedonly&filter=%5Ecluster%5C.").body, "");
}

#[test]
fn workloads_and_server_info() {
    let state = fake();
    assert_eq!(
        get(&state, "/workloads").body,
        "ns/pod::uid::u\nns/pod::service_account::sa\nns/pod::ips::10.0.0.1\nns/pod::cx_active::1\n\
         ns/pod::max_connections::0\nns/pod::buffered_bytes::4096\nns/pod::max_buffered_bytes::1048576\n\
         ns/pod::cx_refused_by_max_connections::0\nns/pod::cx_refused_by_max_buffered_bytes::2\n\
         ns/pod::rq_refused_by_max_buffered_bytes::0\nns/pod::retries_given_up::0\n\
         ns/pod::buffers_pressed::1\nns/pod::flows::2 accelerated (0 of them handed off), 0 on TCP\n\
         ns/pod::connect.steered_outbound::3\n\
         ns/pod::accel.accelerated::2\nns/pod::accel.kept_peer::4\nns/pod::accel.left_stream::1\n"
    );
    let info: Value = serde_json::from_str(&get(&state, "/server_info").body).unwrap();
    assert_eq!((&info["state"], &info["uptime_current_epoch"]), (&json!("LIVE"), &json!("8s")));
    assert_eq!((&info["node"]["id"], &info["command_line_options"]["concurrency"]), (&json!("n"), &json!(2)));
}

#[test]
fn the_acceleration_page_says_for_every_pod_what_goes_past_tcp_and_why_the_rest_does_not() {
    let state = fake();
    assert_eq!(
        get(&state, "/acceleration").body,
        "acceleration::on\nhand_off::on\ntest::fionread::as TCP\ntest::splice::cannot\n\
         ns/pod::acceleration::on\nns/pod::hand_off::off\nns/pod::steered::3 outbound, 0 inbound\n\
         ns/pod::flows::2 accelerated (0 of them handed off), 0 on TCP\n\
         ns/pod::flows.accelerated::2::bytes go past TCP\n\
         ns/pod::halves.kept_peer::4::not handed off: its other end is no pod of this node, or the way there is \
         not accelerated\n\
         ns/pod::directions.left_stream::1::went to TCP: so much waited at its reader that it is a stream\n\
         ns/pod::past_tcp::5 messages, 70 bytes\n\
         ns/pod::port 80::fit::4 connections were seen, none with anything against it\n\
         ns/pod::port 81::learning::1 of 3 connections were seen\n\
         ns/pod::clients::tcp_blocking::on TCP: the application's sockets block, and would see errors that \
         TCP does not give\n\
         ns/pod::client /bin/curl::fit::3 connections were seen, none with anything against it\n"
    );
    let bytes = "# TYPE mesh_accelerated_bytes_total counter\n\
                 mesh_accelerated_bytes_total{namespace=\"ns\",pod=\"pod\"} 70\n";
    assert_eq!(get(&state, "/stats/prometheus?filter=mesh_accelerated_bytes").body, bytes);
    assert_eq!(get(&state, "/acceleration/switch?enable=on").status, 405);
    assert_eq!(post(&state, "/acceleration/switch?enable=maybe").status, 400);
    assert_eq!(post(&state, "/acceleration/switch?enable=off").body, "OK\n");
    assert_eq!(post(&state, "/acceleration/hand_off?enable=on").body, "OK\n");
    assert_eq!(*state.calls.lock().unwrap(), ["leave on TCP", "hand off"]);
}

#[tokio::test]
async fn pages_are_served_over_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, Arc::new(fake())));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nLIVE\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; charset=UTF-8\r\n"), "{answer}");
    server.abort();
}

#[test]
fn what_a_server_pushed_is_shown_beside_what_the_bootstrap_has() {
    let fake = fake();
    let page = |uri: &str| get(&fake, uri);
    let dump = |uri: &str| -> Value { serde_json::from_str(&page(uri).body).unwrap() };
    let clusters = |dump: &Value| dump["configs"][1].clone();
    let shown = clusters(&dump("/config_dump"));
    assert_eq!(shown["version_info"], "7");
    assert_eq!(shown["dynamic_active_clusters"][0]["cluster"]["name"], "pushed");
    assert_eq!(shown["static_clusters"].as_array().unwrap().len(), 2);
    let routes = dump("/config_dump?resource=static_route_configs");
    let names = routes["configs"].as_array().unwrap().iter().map(|config| &config["route_config"]["name"]);
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["local", "in a pushed one"],
        "those of listeners, whoever has them"
    );
    assert!(clusters(&dump("/config_dump?name_regex=back"))["dynamic_active_clusters"][0].is_null());
    let one = dump("/config_dump?resource=dynamic_active_clusters");
    assert_eq!(
        one["configs"][0]["@type"],
        "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster"
    );
    assert!(!page("/config_dump").body.contains("EndpointsConfigDump"));
    assert!(page("/config_dump?include_eds").body.contains("EndpointsConfigDump"));
    assert_eq!(page("/config_dump?workload=default/web").status, 200);
    assert_eq!(page("/config_dump?workload=default/none").status, 404);
    assert_eq!(page("/clusters?workload=default/none").status, 404);
}

#[test]
fn runtime_values_are_refused_without_a_layer_for_them_as_in_envoy() {
    let state = fake();
    assert_eq!(get(&state, "/runtime").body, "{\n \"entries\": {},\n \"layers\": []\n}\n");
    let post = |path: &str| pages::answer(&state, &http::Method::POST, &path.parse().unwrap());
    let reply = post("/runtime_modify?a=b");
    assert_eq!((reply.status.as_u16(), &*reply.body), (503, "No admin layer specified"));
    assert_eq!(post("/runtime_modify").status.as_u16(), 400);
}

#[test]
fn endpoints_are_shown_with_the_health_that_they_have_by_now() {
    use crate::cluster::HealthFlag;
    use crate::cluster::tests::support::{assigned, cluster, endpoint, locality, snapshot};
    use crate::model::cluster::{Discovery, HealthStatus};
    let mut state = fake();
    let mut eds = cluster("pushed", Vec::new());
    eds.discovery = Discovery::Eds { service_name: "pushed".into() };
    let manager = ClusterManager::new(1);
    manager.apply(&snapshot(vec![eds]));
    let of = |address| endpoint(address, 1, HealthStatus::Healthy);
    let endpoints = vec![of("10.0.0.1:80"), of("10.0.0.2:80")];
    manager.set_endpoints(&"pushed".into(), &assigned(vec![locality(0, 1, endpoints)]));
    let hosts = manager.get("pushed").unwrap().hosts();
    hosts[1].counters.health.set(HealthFlag::FailedOutlierCheck);
    let failed = hosts[1].address;
    state.clusters = Arc::new(manager);
    let dump: Value =
        serde_json::from_str(&get(&state, "/config_dump?include_eds&resource=dynamic_endpoint_configs").body)
            .unwrap();
    let shown = &dump["configs"][0]["endpoint_config"]["endpoints"][0]["lb_endpoints"];
    for endpoint in shown.as_array().unwrap() {
        let address = endpoint["endpoint"]["address"]["socket_address"]["address"].as_str().unwrap();
        let wanted = if address == failed.ip().to_string() { "UNHEALTHY" } else { "HEALTHY" };
        assert_eq!(endpoint["health_status"], wanted, "{address}");
    }
}
