//! Filters that come apart from their listener.

use mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig;

use super::*;

const BUFFER: &str = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer";
const ECDS: ResourceType = ResourceType::ExtensionConfig;

/// Listener `l` with filter `f` by discovery; `more`: further fields of `config_discovery`.
fn listener(more: &str) -> (&'static str, String) {
    let (name, yaml) = http("l", "r");
    let filter = format!(
        "http_filters: [{{name: f, config_discovery: {{config_source: {{ads: {{}}}}, type_urls: [{BUFFER}]{more}}}}}, "
    );
    (name, yaml.replace("http_filters: [", &filter))
}

fn buffer(bytes: u32) -> (&'static str, String) {
    ("f", format!("{{name: f, typed_config: {{'@type': {BUFFER}, max_request_bytes: {bytes}}}}}"))
}

impl Fixture {
    fn extension(&mut self, of: (&str, String)) -> Vec<Rejected> {
        self.push::<TypedExtensionConfig>(ECDS, &[of], &[])
    }

    /// The bytes that the buffer filter of the serving listener takes.
    fn buffered(&mut self) -> Option<u32> {
        use crate::model::http_filter::HttpFilterKind;
        use crate::model::network::NetworkFilter;
        let listener = self.assembly.assembled().listeners.first()?.clone();
        let NetworkFilter::HttpConnectionManager(manager) = &listener.filter_chains[0].filters[0] else {
            return None;
        };
        manager.http_filters.iter().find_map(|filter| match &filter.kind {
            HttpFilterKind::Buffer(buffer) => u32::try_from(buffer.max_request_bytes).ok(),
            _ => None,
        })
    }
}

/// A fixture with routes and cluster, and a listener that waits for its filter.
fn waiting(more: &str) -> Fixture {
    let mut f = Fixture::new();
    f.clusters(&[eds("a")], &[]);
    f.endpoints("a", 1);
    f.settle();
    assert_eq!(f.listeners(&[listener(more)], &[]), []);
    f
}

#[test]
fn a_listener_serves_once_its_filters_have_come_and_takes_their_changes() {
    let mut f = waiting("");
    assert_eq!(f.settle(), [""; 0]);
    assert_eq!(f.wanted(ECDS), names(&["f"]));
    assert!(!f.assembly.has_started(f.now));
    let dump = f.assembly.dump();
    let shown = &dump["ListenersConfigDump"]["dynamic_listeners"][0]["warming_state"]["listener"];
    assert_eq!(shown["name"], "l");
    assert_eq!(f.extension(buffer(10)), []);
    assert_eq!(f.settle(), [""; 0], "routes are asked for now");
    assert_eq!(f.wanted(ResourceType::Route), names(&["r"]));
    f.routes("r", "a");
    assert_eq!(f.settle(), ["publish a | l"]);
    assert_eq!(f.buffered(), Some(10));
    assert!(f.assembly.has_started(f.now));
    f.extension(buffer(20));
    assert_eq!(f.settle(), ["publish a | l"]);
    assert_eq!(f.buffered(), Some(20));
    f.extension(buffer(20));
    assert_eq!(f.settle(), [""; 0], "unchanged");
    let dump = f.assembly.dump();
    let filter = &dump["EcdsConfigDump"]["ecds_filters"][0]["ecds_filter"];
    assert_eq!(filter["typed_config"]["max_request_bytes"], 20);
}

#[test]
fn a_filter_that_is_not_built_is_refused_by_name_and_the_listener_never_serves_without_it() {
    let mut f = waiting("");
    let wasm =
        "{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm}}";
    let rejected = f.extension(("f", wasm.to_owned()));
    assert!(rejected[0].reason.contains("envoy.extensions.filters.http.wasm.v3.Wasm"), "{rejected:?}");
    f.routes("r", "a");
    f.wait(60);
    assert_eq!(f.settle(), [""; 0]);
    assert!(f.assembly.has_started(f.now), "others do not wait for it");
    let dump = f.assembly.dump();
    assert!(dump["EcdsConfigDump"]["ecds_filters"][0]["error_state"].is_object());
    assert_eq!(f.extension(buffer(10)), []);
    f.settle();
    f.routes("r", "a");
    f.settle();
    assert_eq!(f.buffered(), Some(10));
}

#[test]
fn a_filter_of_a_type_that_its_listener_does_not_allow_is_refused() {
    let mut f = waiting("");
    f.extension(buffer(10));
    let cors =
        "{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}";
    let rejected = f.extension(("f", cors.to_owned()));
    assert_eq!(
        rejected[0].reason,
        "typed_config: is a envoy.extensions.filters.http.cors.v3.Cors; its listener allows \
         envoy.extensions.filters.http.buffer.v3.Buffer"
    );
    f.routes("r", "a");
    f.settle();
    assert_eq!(f.buffered(), Some(10), "the last good one");
}

#[test]
fn a_default_serves_until_the_filter_comes_and_after_it_is_gone() {
    let default = format!(", default_config: {{'@type': {BUFFER}, max_request_bytes: 1}}");
    let mut f = waiting(&default);
    f.routes("r", "a");
    assert_eq!(f.settle(), [""; 0], "it may still come");
    assert_eq!(f.assembly.next_deadline(f.now), Some(f.now + Duration::from_secs(15)));
    f.wait(15);
    f.settle();
    f.routes("r", "a");
    f.settle();
    assert_eq!(f.buffered(), Some(1));
    f.extension(buffer(10));
    f.settle();
    assert_eq!(f.buffered(), Some(10));
    f.push::<TypedExtensionConfig>(ECDS, &[], &["f"]);
    f.settle();
    assert_eq!(f.buffered(), Some(1));
    // At once, where it says so.
    let mut f = waiting(&format!("{default}, apply_default_config_without_warming: true"));
    f.settle();
    f.routes("r", "a");
    f.settle();
    assert_eq!(f.buffered(), Some(1));
}

#[test]
fn a_filter_that_no_listener_names_any_more_is_forgotten() {
    let mut f = waiting("");
    f.extension(buffer(10));
    f.listeners(&[http("l", "r")], &[]);
    f.settle();
    assert_eq!(f.wanted(ECDS), None);
    assert!(f.assembly.extensions.is_empty());
    assert!(f.assembly.templates.is_empty());
}

#[test]
fn the_table_of_names_is_asked_for_kept_and_shown() {
    use mesh_xds::istio::nds::{NameInfo, NameTable};
    let mut f = serving();
    assert_eq!(f.wanted(ResourceType::NameTable), Some(Wanted::All));
    let info = NameInfo {
        ips: vec!["10.96.0.7".to_owned()],
        registry: "Kubernetes".to_owned(),
        shortname: "web".to_owned(),
        namespace: "shop".to_owned(),
    };
    let mut table = NameTable::default();
    table.table.insert("web.shop.svc.cluster.local".to_owned(), info);
    let mut push = |table: &NameTable| {
        let body = table.encode_to_vec();
        let resource = Resource { name: String::new(), version: String::new(), body, ttl: None };
        let received = Received {
            kind: ResourceType::NameTable,
            version: "1".to_owned(),
            nonce: String::new(),
            resources: vec![resource],
            removed: Vec::new(),
            unreadable: Vec::new(),
            heartbeats: Vec::new(),
        };
        f.assembly.receive(&received, f.now)
    };
    assert_eq!(push(&table), []);
    let mut bad = table.clone();
    bad.table.get_mut("web.shop.svc.cluster.local").unwrap().ips.push("nowhere".to_owned());
    assert_eq!(
        push(&bad)[0].reason,
        "name_table.table.web.shop.svc.cluster.local.ips[1]: \"nowhere\" is not an IP address"
    );
    let shown = &f.assembly.name_table()["table"]["web.shop.svc.cluster.local"];
    assert_eq!(shown["ips"][0], "10.96.0.7");
    assert_eq!((&shown["shortname"], &shown["namespace"]), (&"web".into(), &"shop".into()));
}
