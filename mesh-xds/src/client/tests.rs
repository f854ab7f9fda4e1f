//! The protocol as servers see it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prost::Message;

use super::ttl::Ttls;
use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::service::discovery::v3 as discovery;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::pb::google::protobuf::Any;

fn any(kind: ResourceType, name: &str) -> Any {
    let value = match kind {
        ResourceType::Cluster => Cluster { name: name.to_owned(), ..Cluster::default() }.encode_to_vec(),
        _ => RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::default() }.encode_to_vec(),
    };
    Any { type_url: kind.url().to_owned(), value }
}

fn delta_response(
    kind: ResourceType,
    nonce: &str,
    names: &[&str],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resource = |name: &&str| discovery::Resource {
        name: (*name).to_owned(),
        version: format!("of-{name}"),
        resource: Some(any(kind, name)),
        ..discovery::Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: kind.url().to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn response(kind: ResourceType, version: &str, nonce: &str, names: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        type_url: kind.url().to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(|name| any(kind, name)).collect(),
        ..DiscoveryResponse::default()
    }
}

fn names(of: &[&str]) -> Wanted {
    of.iter().copied().collect()
}

fn node() -> Node {
    Node { id: "n".to_owned(), ..Node::default() }
}

/// A delta client that holds clusters `a` and `b`.
fn holding() -> Delta {
    let mut delta = Delta::new(node());
    delta.subscribe(ResourceType::Cluster, Wanted::All);
    delta.connected();
    delta.next_request().unwrap();
    let received = delta.receive(delta_response(ResourceType::Cluster, "1", &["a", "b"], &[])).unwrap();
    delta.finish(&received, &[]);
    delta.next_request().unwrap();
    delta
}

#[test]
fn a_delta_stream_begins_with_who_asks_and_what_is_held() {
    let mut delta = holding();
    assert_eq!(delta.next_request(), None, "nothing to say");
    delta.connected();
    let first = delta.next_request().unwrap();
    assert_eq!(first.node.unwrap().id, "n");
    assert_eq!(first.resource_names_subscribe, Vec::<String>::new(), "a wildcard");
    let held: BTreeMap<_, _> = first.initial_resource_versions.into_iter().collect();
    let expected = [("a", "of-a"), ("b", "of-b")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(held, BTreeMap::from(expected));
}

#[test]
fn a_nack_names_the_resource_and_the_field_and_the_others_are_held() {
    let mut delta = holding();
    let received = delta.receive(delta_response(ResourceType::Cluster, "2", &["b", "c"], &["a"])).unwrap();
    let reason = "cluster.lb_policy: no".to_owned();
    delta.finish(&received, &[Rejected { name: "c".to_owned(), reason }]);
    let nack = delta.next_request().unwrap();
    assert_eq!((nack.response_nonce.as_str(), nack.node), ("2", None));
    assert_eq!(nack.error_detail.unwrap().message, "c: cluster.lb_policy: no");
    delta.connected();
    let held: BTreeSet<_> = delta.next_request().unwrap().initial_resource_versions.into_keys().collect();
    assert_eq!(held, BTreeSet::from(["b".to_owned()]), "a is gone, c was never taken");
}

#[test]
fn a_change_of_subscriptions_is_never_part_of_an_ack() {
    let mut delta = Delta::new(node());
    delta.subscribe(ResourceType::Route, names(&["x", "y"]));
    delta.connected();
    assert_eq!(delta.next_request().unwrap().resource_names_subscribe, ["x", "y"]);
    let received = delta.receive(delta_response(ResourceType::Route, "1", &["x", "y"], &[])).unwrap();
    delta.subscribe(ResourceType::Route, names(&["y", "z"]));
    delta.finish(&received, &[]);
    let ack = delta.next_request().unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.resource_names_subscribe.len()), ("1", 0));
    let change = delta.next_request().unwrap();
    assert_eq!((change.response_nonce.as_str(), change.node), ("", None));
    assert_eq!(change.resource_names_subscribe, ["z"]);
    assert_eq!(change.resource_names_unsubscribe, ["x"]);
    assert_eq!(delta.next_request(), None);
    // A response may hold a name that was just unsubscribed: it counts for nothing.
    let late = delta.receive(delta_response(ResourceType::Route, "2", &["x", "z"], &[])).unwrap();
    assert_eq!(late.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["z"]);
}

#[test]
fn a_nonce_that_was_used_before_is_refused_by_name_in_both_forms() {
    let mut delta = holding();
    let problem = delta.receive(delta_response(ResourceType::Cluster, "1", &["evil"], &[])).unwrap_err();
    let expected = Problem::RepeatedNonce { kind: ResourceType::Cluster, nonce: "1".to_owned() };
    assert_eq!(problem, expected);
    assert!(delta.next_request().unwrap().error_detail.unwrap().message.contains("nonce \"1\""));

    let mut sotw = Sotw::new(node());
    sotw.subscribe(ResourceType::Cluster, Wanted::All);
    sotw.connected();
    sotw.next_request().unwrap();
    let received = sotw.receive(response(ResourceType::Cluster, "v1", "1", &["a"])).unwrap();
    sotw.finish(&received, &[]);
    sotw.next_request().unwrap();
    assert_eq!(sotw.receive(response(ResourceType::Cluster, "v2", "1", &["a"])).unwrap_err(), expected);
    let nack = sotw.next_request().unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "1"));
    assert!(nack.error_detail.is_some());
    // On a new stream nonces begin anew.
    sotw.connected();
    sotw.next_request().unwrap();
    assert!(sotw.receive(response(ResourceType::Cluster, "v2", "1", &["a"])).is_ok());
}

#[test]
fn what_nobody_asked_for_is_not_taken() {
    let mut delta = holding();
    let problem = delta.receive(delta_response(ResourceType::Route, "9", &["r"], &[])).unwrap_err();
    assert_eq!(problem, Problem::NotSubscribed(ResourceType::Route.url().to_owned()));
    let unknown = DeltaDiscoveryResponse { type_url: "x/y.Z".to_owned(), ..Default::default() };
    assert_eq!(delta.receive(unknown).unwrap_err(), Problem::NotSubscribed("x/y.Z".to_owned()));
    assert_eq!(delta.next_request(), None);
}

#[test]
fn a_resource_of_another_type_or_name_is_unreadable_and_the_rest_is_not() {
    let mut delta = holding();
    let mut of_other_type = delta_response(ResourceType::Cluster, "2", &["a", "b", "a"], &[]);
    of_other_type.resources[1].resource = Some(any(ResourceType::Route, "b"));
    of_other_type.resources.push(discovery::Resource {
        name: "c".to_owned(),
        resource: Some(any(ResourceType::Cluster, "d")),
        ..Default::default()
    });
    let received = delta.receive(of_other_type).unwrap();
    assert_eq!(received.resources.len(), 1);
    let reasons: Vec<_> = received.unreadable.iter().map(|r| format!("{} {}", r.name, r.reason)).collect();
    assert!(reasons[0].starts_with("b is of type"), "{reasons:?}");
    assert_eq!(reasons[1], "a is in the response twice");
    assert_eq!(reasons[2], "c its message has the name \"d\"");
}

#[test]
fn state_of_the_world_removes_clusters_that_are_missing_and_never_routes() {
    let mut sotw = Sotw::new(node());
    sotw.subscribe(ResourceType::Cluster, Wanted::All);
    sotw.subscribe(ResourceType::Route, names(&["x", "y"]));
    sotw.connected();
    while sotw.next_request().is_some() {}
    for (kind, first, second) in
        [(ResourceType::Cluster, ["a", "b"], ["b"]), (ResourceType::Route, ["x", "y"], ["y"])]
    {
        let received = sotw.receive(response(kind, "1", "n1", &first)).unwrap();
        sotw.finish(&received, &[]);
        let received = sotw.receive(response(kind, "2", "n2", &second)).unwrap();
        let removed: &[&str] = if kind == ResourceType::Cluster { &["a"] } else { &[] };
        assert_eq!(received.removed, removed);
        sotw.finish(&received, &[]);
    }
}

#[test]
fn a_rejected_push_keeps_the_version_of_the_last_good_one() {
    let mut sotw = Sotw::new(node());
    sotw.subscribe(ResourceType::Cluster, Wanted::All);
    sotw.connected();
    assert_eq!(sotw.next_request().unwrap().version_info, "");
    let received = sotw.receive(response(ResourceType::Cluster, "1", "n1", &["a"])).unwrap();
    sotw.finish(&received, &[]);
    assert_eq!(sotw.next_request().unwrap().version_info, "1");
    let received = sotw.receive(response(ResourceType::Cluster, "2", "n2", &["a", "bad"])).unwrap();
    sotw.finish(&received, &[Rejected { name: "bad".to_owned(), reason: "r".to_owned() }]);
    let nack = sotw.next_request().unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "n2"));
    assert_eq!(nack.error_detail.unwrap().message, "bad: r");
    // After a reconnect the server learns what is held; the nonce was the old stream's.
    sotw.connected();
    let first = sotw.next_request().unwrap();
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("1", ""));
    // What was never taken is gone too when it is sent no more.
    let received = sotw.receive(response(ResourceType::Cluster, "3", "n3", &["a"])).unwrap();
    assert_eq!(received.removed, ["bad"]);
}

#[test]
fn resources_run_out_unless_they_are_sent_again() {
    let begin = Instant::now();
    let mut ttls = Ttls::default();
    let mut delta = holding();
    let with_ttl = |nonce: &str, body: bool| {
        let mut response = delta_response(ResourceType::Cluster, nonce, &["a"], &[]);
        response.resources[0].ttl = Some(crate::pb::google::protobuf::Duration { seconds: 10, nanos: 0 });
        response.resources[0].resource = response.resources[0].resource.take().filter(|_| body);
        response
    };
    ttls.note(&delta.receive(with_ttl("2", true)).unwrap(), begin);
    let heartbeat = delta.receive(with_ttl("3", false)).unwrap();
    assert!(heartbeat.resources.is_empty() && heartbeat.unreadable.is_empty());
    ttls.note(&heartbeat, begin + Duration::from_secs(8));
    assert!(ttls.expired(begin + Duration::from_secs(17)).is_empty());
    assert_eq!(ttls.next(), Some(begin + Duration::from_secs(18)));
    let expired = ttls.expired(begin + Duration::from_secs(18));
    assert_eq!(expired, [(ResourceType::Cluster, "a".to_owned())]);
    assert_eq!(ttls.next(), None);
}

#[test]
fn waits_grow_to_a_bound_and_begin_anew_after_a_success() {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let longest: Vec<_> = (0..8).map(|_| backoff.failed(u64::MAX - u64::MAX % 30_000 - 1)).collect();
    assert!(longest.iter().all(|wait| *wait <= Duration::from_secs(30)), "{longest:?}");
    for _ in 0..100 {
        assert!(backoff.failed(12_345) <= Duration::from_secs(30));
    }
    backoff.succeeded();
    assert!(backoff.failed(u64::MAX) <= Duration::from_millis(500));
}

#[test]
fn a_file_gives_resources_and_says_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cds.yaml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write(
        "version_info: '7'\nresources:\n- {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a}\n\
         - {'@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r}\n",
    );
    let received = read_file(&path, ResourceType::Cluster).unwrap();
    assert_eq!((received.version.as_str(), received.resources[0].name.as_str()), ("7", "a"));
    assert_eq!(received.unreadable[0].name, "resources[1]");
    write("resources: [{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, nam: a}]");
    let error = read_file(&path, ResourceType::Cluster).unwrap_err().to_string();
    assert!(error.contains("did you mean name?"), "{error}");
    let error = read_file(&folder.path().join("none"), ResourceType::Cluster).unwrap_err().to_string();
    assert!(error.ends_with("check the path and its permissions"), "{error}");
}

/// What a server and the network can do to a client.
#[derive(Debug, Clone)]
enum Act {
    Want(Vec<u8>),
    Push { names: Vec<u8>, removed: Vec<u8>, reject: Vec<u8> },
    Reconnect,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let few = || prop::collection::vec(0..6u8, 0..5);
    let act = prop_oneof![
        few().prop_map(Act::Want),
        (few(), few(), few()).prop_map(|(names, removed, reject)| Act::Push { names, removed, reject }),
        Just(Act::Reconnect),
    ];
    prop::collection::vec(act, 0..40)
}

proptest! {
    /// Whatever happens, a server that follows the requests knows what is subscribed to, each response is
    /// answered once and alone, and what is said to be held at a reconnect is wanted.
    #[test]
    fn a_server_that_follows_the_requests_knows_what_is_wanted(acts in acts()) {
        let mut delta = Delta::new(node());
        let name = |of: &u8| format!("r{of}");
        let mut wanted = BTreeSet::new();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut nonce = 0;
        delta.connected();
        for act in acts {
            let mut answers = 0;
            match act {
                Act::Want(of) => {
                    wanted = of.iter().map(name).collect::<BTreeSet<_>>();
                    delta.subscribe(ResourceType::Route, wanted.iter().map(String::as_str).collect());
                }
                Act::Push { names, removed, reject } => {
                    nonce += 1;
                    let names: BTreeSet<_> = names.iter().map(name).collect();
                    let names: Vec<_> = names.iter().map(String::as_str).collect();
                    let removed: Vec<_> = removed.iter().map(name).collect();
                    let removed: Vec<_> = removed.iter().map(String::as_str).collect();
                    let response = delta_response(ResourceType::Route, &nonce.to_string(), &names, &removed);
                    if let Ok(received) = delta.receive(response) {
                        let reject: Vec<_> = reject
                            .iter()
                            .map(|of| Rejected { name: name(of), reason: String::new() })
                            .collect();
                        delta.finish(&received, &reject);
                        answers = 1;
                    }
                }
                Act::Reconnect => {
                    delta.connected();
                    known.clear();
                }
            }
            let mut answered = 0;
            while let Some(request) = delta.next_request() {
                let changes =
                    request.resource_names_subscribe.len() + request.resource_names_unsubscribe.len();
                if request.response_nonce.is_empty() {
                    for held in request.initial_resource_versions.keys() {
                        prop_assert!(wanted.contains(held));
                    }
                    known.extend(request.resource_names_subscribe);
                    for gone in request.resource_names_unsubscribe {
                        prop_assert!(known.remove(&gone));
                    }
                } else {
                    answered += 1;
                    prop_assert_eq!(changes, 0);
                }
            }
            prop_assert_eq!(answered, answers);
            prop_assert_eq!(&known, &wanted);
        }
    }
}
