//! Clusters, endpoints, chance and name servers for tests.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{Answer, ClusterManager, ClusterState, Family, Lookups, Random, Resolve, ResolveError};
use crate::model::cluster::{
    Assignment, Balancing, Cluster, Discovery, Endpoint, EndpointAddress, HealthStatus, LbPolicy, Locality,
    Transport, UpstreamProtocol,
};
use crate::model::network::{Http1Options, Http2Options};
use crate::model::{Snapshot, Str};

/// A repeatable sequence of good random numbers (splitmix64).
#[derive(Debug, Default)]
pub(crate) struct Seeded(AtomicU64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seed)))
    }
}

impl Random for Seeded {
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A resolver whose answers the test sets; a name without one is a failure.
#[derive(Debug, Default)]
pub(crate) struct Scripted(Mutex<HashMap<(String, bool), Answer>>);

impl Scripted {
    pub(crate) fn set(&self, name: &str, addresses: &[&str], ttl_s: u64) {
        for v4 in [true, false] {
            let addresses: Vec<IpAddr> =
                addresses.iter().map(|a| a.parse().unwrap()).filter(|a: &IpAddr| a.is_ipv4() == v4).collect();
            let answer = Answer { addresses, ttl: Some(Duration::from_secs(ttl_s)) };
            self.0.lock().unwrap().insert((name.to_owned(), v4), answer);
        }
    }

    pub(crate) fn fail(&self, name: &str) {
        self.0.lock().unwrap().retain(|(n, _), _| n != name);
    }
}

impl Resolve for Scripted {
    fn lookup<'a>(&'a self, name: &'a str, family: Family) -> Lookups<'a> {
        let answer = self.0.lock().unwrap().get(&(name.to_owned(), family == Family::V4)).cloned();
        let error = || ResolveError { name: name.to_owned(), reason: "server failure".to_owned() };
        Box::pin(async move { answer.ok_or_else(error) })
    }
}

pub(crate) fn endpoint(address: &str, weight: u32, health: HealthStatus) -> Arc<Endpoint> {
    let address = match address.parse::<SocketAddr>() {
        Ok(address) => EndpointAddress::Socket(address),
        Err(_) => {
            let (host, port) = address.split_once(':').unwrap();
            EndpointAddress::Host(host.into(), port.parse().unwrap())
        }
    };
    Arc::new(Endpoint {
        address,
        hostname: None,
        weight,
        health,
        peer: None,
        transport_match: Vec::new(),
        lb_metadata: Vec::new().into(),
        metadata: Box::default(),
        check: None,
        additional: Vec::new(),
    })
}

pub(crate) fn locality(priority: u32, weight: u32, endpoints: Vec<Arc<Endpoint>>) -> Locality {
    Locality {
        region: Str::default(),
        zone: Str::default(),
        sub_zone: Str::default(),
        priority,
        weight,
        endpoints,
    }
}

/// Healthy endpoints with these weights, at 10.0.0.1, 10.0.0.2 and so on.
pub(crate) fn weighted(weights: &[u32]) -> Vec<Locality> {
    let endpoints = weights.iter().enumerate().map(|(i, weight)| {
        endpoint(&format!("10.0.{}.{}:80", i / 250, i % 250 + 1), *weight, HealthStatus::Healthy)
    });
    vec![locality(0, 0, endpoints.collect())]
}

pub(crate) fn assigned(localities: Vec<Locality>) -> Arc<Assignment> {
    Arc::new(Assignment { localities, ..Assignment::default() })
}

pub(crate) fn cluster(name: &str, load_assignment: Vec<Locality>) -> Cluster {
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        discovery: Discovery::Static,
        load_assignment: Arc::new(Assignment { localities: load_assignment, ..Assignment::default() }),
        lb: LbPolicy::RoundRobin,
        balancing: Balancing::default(),
        outlier_detection: None,
        error_matcher: None,
        health_check: None,
        panic_threshold_percent: 50.0,
        locality_weighted: false,
        connect_timeout: Duration::from_secs(5),
        bind_sources: Vec::new(),
        tcp_keepalive: None,
        transport_socket_matches: Vec::new(),
        transport_socket: Transport::Raw,
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        idle_timeout: None,
        max_requests_per_connection: 0,
        max_stream_duration: None,
        auto_sni: false,
        auto_san_validation: false,
        circuit_breakers: Default::default(),
        remaining_stats: None,
        per_connection_buffer_limit_bytes: 1 << 20,
        close_connections_on_host_health_failure: false,
        stats: Arc::default(),
        istio: Default::default(),
        metadata: Box::default(),
        content_hash: 1,
    }
}

pub(crate) fn manager(seed: u64, resolver: Arc<dyn Resolve>) -> ClusterManager {
    ClusterManager::with(1, Seeded::new(seed), resolver)
}

pub(crate) fn snapshot(clusters: Vec<Cluster>) -> Snapshot {
    Snapshot::new(1, Vec::new(), clusters.into_iter().map(Arc::new))
}

/// The run-time state of one cluster without names to resolve.
pub(crate) fn state(seed: u64, config: Cluster) -> Arc<ClusterState> {
    let name = config.name.clone();
    let manager = manager(seed, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![config]));
    manager.get(&name).unwrap()
}

/// How often each address was chosen in `n` choices.
pub(crate) fn tally(state: &ClusterState, n: usize) -> HashMap<String, usize> {
    let mut tally = HashMap::new();
    for _ in 0..n {
        let host = state.choose(&Default::default()).unwrap();
        *tally.entry(host.address.to_string()).or_default() += 1;
    }
    tally
}

pub(crate) fn addresses(state: &ClusterState) -> Vec<String> {
    let mut all: Vec<String> = state.hosts().iter().map(|h| h.address.to_string()).collect();
    all.sort();
    all
}
