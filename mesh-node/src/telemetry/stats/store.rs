//! The one place where statistics are found by name: the same name gives the same handle, and what nobody
//! holds any more is gone from the output.
//!
//! Used when resources are compiled and when statistics are shown, never per request.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use regex::Regex;

use super::custom::{Custom, Each};
use super::groups::{
    ClusterManagerStats, ClusterStats, ControlPlaneStats, FilesystemStats, Group, HealthCheckStats,
    HttpStats, ListenerManagerStats, ListenerStats, MaglevStats, OutlierStats, RemainingStats, RingHashStats,
    ServerStats, Stat, SubscriptionStats, SubsetStats, TcpStats,
};
use super::histogram::{BOUNDS, Summary};
use super::shape::StatsShape;

/// All statistics of the process.
#[derive(Debug, Default)]
pub struct Store {
    listeners: Family<ListenerStats>,
    http: Family<HttpStats>,
    clusters: Family<ClusterStats>,
    ring_hash: Family<RingHashStats>,
    maglev: Family<MaglevStats>,
    outlier: Family<OutlierStats>,
    subsets: Family<SubsetStats>,
    remaining: Family<RemainingStats>,
    health_check: Family<HealthCheckStats>,
    tcp: Family<TcpStats>,
    /// By their whole prefix.
    subscriptions: Family<SubscriptionStats>,
    control_plane: Arc<ControlPlaneStats>,
    server: Arc<ServerStats>,
    listener_manager: Arc<ListenerManagerStats>,
    cluster_manager: Arc<ClusterManagerStats>,
    filesystem: Arc<FilesystemStats>,
    custom: Arc<Custom>,
    read: Mutex<BTreeMap<String, ReadStat>>,
    /// `stats_config`
    shape: ArcSwapOption<StatsShape>,
}

/// Groups of one kind by name. Weak: the resources own their statistics.
type Family<G> = Mutex<BTreeMap<String, Weak<G>>>;

/// A statistic that lives elsewhere and is read when it is shown.
struct ReadStat {
    kind: Kind,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for ReadStat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadStat").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The type of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Which statistics to show.
#[derive(Debug, Default)]
pub struct Query {
    /// Found anywhere in the name.
    pub filter: Option<Regex>,
    /// Shows what `filter` does not match.
    pub invert: bool,
    /// Only what was written since the start.
    pub used_only: bool,
    pub kind: Option<Kind>,
}

impl Query {
    fn wants(&self, name: &str, kind: Kind, used: bool) -> bool {
        (used || !self.used_only)
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert)
    }
}

/// One statistic as it is now.
#[derive(Debug, Clone)]
pub struct Sample {
    /// `cluster.NAME.upstream_rq_total`.
    pub name: String,
    pub value: Value,
    pub tags: Tags,
    /// Bounds of a histogram's buckets, where they are not Envoy's defaults.
    pub bounds: Option<Arc<[f64]>>,
}

impl Sample {
    pub(super) fn bounds(&self) -> &[f64] {
        self.bounds.as_deref().unwrap_or(&BOUNDS)
    }
}

/// The value of a [`Sample`].
#[derive(Debug, Clone)]
pub enum Value {
    Counter(u64),
    Gauge(u64),
    Histogram { cumulative: Summary, interval: Summary },
}

/// A name with its variable parts taken out (Envoy: tag extraction).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// `cluster.upstream_rq_total`.
    pub name: String,
    /// Label and value, in Envoy's order.
    pub labels: Vec<(Cow<'static, str>, String)>,
}

impl Store {
    /// `listener.ADDRESS.*`; `address` as `IP:port`.
    pub fn listener(&self, address: &str) -> Arc<ListenerStats> {
        handle(&self.listeners, address)
    }

    /// `http.PREFIX.*`, `prefix` being the connection manager's `stat_prefix`.
    pub fn http(&self, prefix: &str) -> Arc<HttpStats> {
        handle(&self.http, prefix)
    }

    /// `cluster.NAME.*`, `name` being `alt_stat_name` or the cluster's name.
    pub fn cluster(&self, name: &str) -> Arc<ClusterStats> {
        handle(&self.clusters, name)
    }

    /// `cluster.NAME.ring_hash_lb.*`
    pub fn ring_hash(&self, name: &str) -> Arc<RingHashStats> {
        handle(&self.ring_hash, name)
    }

    /// `cluster.NAME.maglev_lb.*`
    pub fn maglev(&self, name: &str) -> Arc<MaglevStats> {
        handle(&self.maglev, name)
    }

    /// `cluster.NAME.circuit_breakers.*.remaining_*`
    pub fn remaining(&self, name: &str) -> Arc<RemainingStats> {
        handle(&self.remaining, name)
    }

    /// `cluster.NAME.lb_subsets_*`
    pub fn subsets(&self, name: &str) -> Arc<SubsetStats> {
        handle(&self.subsets, name)
    }

    /// `cluster.NAME.outlier_detection.*`
    pub fn outlier(&self, name: &str) -> Arc<OutlierStats> {
        handle(&self.outlier, name)
    }

    /// `cluster.NAME.health_check.*`
    pub fn health_check(&self, name: &str) -> Arc<HealthCheckStats> {
        handle(&self.health_check, name)
    }

    /// `tcp.PREFIX.*`, `prefix` being the TCP proxy's `stat_prefix`.
    pub fn tcp(&self, prefix: &str) -> Arc<TcpStats> {
        handle(&self.tcp, prefix)
    }

    /// `PREFIX.update_success` and its kin, such as `cluster_manager.cds`.
    pub fn subscription(&self, prefix: &str) -> Arc<SubscriptionStats> {
        handle(&self.subscriptions, prefix)
    }

    pub fn control_plane(&self) -> &Arc<ControlPlaneStats> {
        &self.control_plane
    }

    pub fn server(&self) -> &Arc<ServerStats> {
        &self.server
    }

    pub fn listener_manager(&self) -> &Arc<ListenerManagerStats> {
        &self.listener_manager
    }

    pub fn cluster_manager(&self) -> &Arc<ClusterManagerStats> {
        &self.cluster_manager
    }

    pub fn filesystem(&self) -> &Arc<FilesystemStats> {
        &self.filesystem
    }

    /// Statistics without a group of their own.
    pub fn custom(&self) -> &Arc<Custom> {
        &self.custom
    }

    /// Shows a value that lives elsewhere (a BPF map, an allocator) under `name`; an earlier one of that
    /// name is replaced. `read` is called for each output and must not block.
    pub fn register(&self, name: &str, kind: Kind, read: impl Fn() -> u64 + Send + Sync + 'static) {
        lock(&self.read).insert(sanitized(name), ReadStat { kind, read: Box::new(read) });
    }

    /// `stats_config` from now on; `None`: Envoy's defaults.
    pub fn set_shape(&self, shape: Option<Arc<StatsShape>>) {
        self.shape.store(shape);
    }

    /// What `query` asks for, sorted by name.
    pub fn samples(&self, query: &Query) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.visit(&mut |place, stat_name, stat| {
            let name = place.full_name(stat_name);
            let (kind, used) = match &stat {
                Stat::Counter(counter) => (Kind::Counter, counter.get() > 0),
                Stat::Gauge(gauge) => (Kind::Gauge, gauge.used()),
                Stat::Histogram(histogram) => (Kind::Histogram, histogram.cumulative().count() > 0),
            };
            if !query.wants(&name, kind, used) {
                return;
            }
            let value = match stat {
                Stat::Counter(counter) => Value::Counter(counter.get()),
                Stat::Gauge(gauge) => Value::Gauge(gauge.get()),
                Stat::Histogram(histogram) => {
                    Value::Histogram { cumulative: histogram.cumulative(), interval: histogram.interval() }
                }
            };
            samples.push(Sample { tags: place.tags(stat_name), name, value, bounds: None });
        });
        self.custom.visit(&mut |name, tags, each| {
            let (kind, used, value) = match each {
                Each::Counter(counter) => (Kind::Counter, counter.get() > 0, Value::Counter(counter.get())),
                Each::Gauge(gauge) => (Kind::Gauge, gauge.used(), Value::Gauge(gauge.get())),
                Each::Histogram(histogram) => {
                    let (cumulative, interval) = (histogram.cumulative(), histogram.interval());
                    (Kind::Histogram, cumulative.count() > 0, Value::Histogram { cumulative, interval })
                }
            };
            if query.wants(name, kind, used) {
                samples.push(Sample { name: name.to_owned(), value, tags: tags.clone(), bounds: None });
            }
        });
        for (name, stat) in lock(&self.read).iter() {
            let number = (stat.read)();
            if query.wants(name, stat.kind, number > 0) {
                let value = match stat.kind {
                    Kind::Gauge => Value::Gauge(number),
                    Kind::Counter | Kind::Histogram => Value::Counter(number),
                };
                let tags = Tags { name: name.clone(), labels: Vec::new() };
                samples.push(Sample { name: name.clone(), value, tags, bounds: None });
            }
        }
        samples.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(shape) = &*self.shape.load() {
            samples.retain(|sample| shape.shows(&sample.name));
            for sample in &mut samples {
                let Sample { name, tags, bounds, .. } = sample;
                let given = std::mem::replace(tags, Tags { name: String::new(), labels: Vec::new() });
                (*tags, *bounds) = (shape.tags(name, given), shape.bounds(name));
            }
        }
        samples
    }

    /// Sets every counter to zero (`/reset_counters`); values that live elsewhere stay.
    pub fn reset_counters(&self) {
        self.visit(&mut |_, _, stat| {
            if let Stat::Counter(counter) = stat {
                counter.reset();
            }
        });
        self.custom.visit(&mut |_, _, each| {
            if let Each::Counter(counter) = each {
                counter.reset();
            }
        });
    }

    /// Ends the interval of every histogram; called each `stats_flush_interval` (default 5 s).
    pub fn flush(&self) {
        self.visit(&mut |_, _, stat| {
            if let Stat::Histogram(histogram) = stat {
                histogram.flush();
            }
        });
        self.custom.visit(&mut |_, _, each| {
            if let Each::Histogram(histogram) = each {
                histogram.flush();
            }
        });
    }

    fn visit(&self, visit: &mut dyn FnMut(Place<'_>, &str, Stat<'_>)) {
        visit_family(&self.listeners, "listener", Some("envoy_listener_address"), visit);
        visit_family(&self.http, "http", Some("envoy_http_conn_manager_prefix"), visit);
        visit_family(&self.clusters, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.ring_hash, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.maglev, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.remaining, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.subsets, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.outlier, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.health_check, "cluster", Some("envoy_cluster_name"), visit);
        visit_family(&self.tcp, "tcp", Some("envoy_tcp_prefix"), visit);
        visit_family(&self.subscriptions, "", None, visit);
        let single: [(&str, &dyn Group); 5] = [
            ("control_plane", &*self.control_plane),
            ("server", &*self.server),
            ("listener_manager", &*self.listener_manager),
            ("cluster_manager", &*self.cluster_manager),
            ("filesystem", &*self.filesystem),
        ];
        for (family, group) in single {
            group.visit(&mut |name, stat| visit(Place { family, label: None, member: "" }, name, stat));
        }
    }
}

fn handle<G: Default>(family: &Family<G>, name: &str) -> Arc<G> {
    let mut family = lock(family);
    let name = sanitized(name);
    if let Some(held) = family.get(&name).and_then(Weak::upgrade) {
        return held;
    }
    // What nobody holds any more leaves when something new comes.
    family.retain(|_, group| group.strong_count() > 0);
    let new = Arc::new(G::default());
    family.insert(name, Arc::downgrade(&new));
    new
}

fn visit_family<G: Group>(
    family: &Family<G>,
    prefix: &str,
    label: Option<&'static str>,
    visit: &mut dyn FnMut(Place<'_>, &str, Stat<'_>),
) {
    let held: Vec<_> =
        lock(family).iter().filter_map(|(name, group)| Some((name.clone(), group.upgrade()?))).collect();
    for (member, group) in &held {
        group.visit(&mut |name, stat| visit(Place { family: prefix, label, member }, name, stat));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Envoy's `Stats::Utility::sanitizeStatsName`.
fn sanitized(name: &str) -> String {
    let name = name.trim_matches('.');
    name.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_")
}

/// Where a statistic belongs.
#[derive(Clone, Copy)]
struct Place<'a> {
    family: &'a str,
    label: Option<&'static str>,
    member: &'a str,
}

impl Place<'_> {
    fn full_name(&self, stat: &str) -> String {
        match self.label {
            Some(_) => format!("{}.{}.{stat}", self.family, self.member),
            None if self.family.is_empty() => format!("{}.{stat}", self.member),
            None => format!("{}.{stat}", self.family),
        }
    }

    /// The member is known, so that names with dots come out whole (Envoy's default regular expressions cut
    /// them at the first dot; Istio configures others that do not).
    fn tags(&self, stat: &str) -> Tags {
        let mut labels = Vec::new();
        let mut stat_name = stat.to_owned();
        if let Some((before, last)) = stat.rsplit_once('_')
            && before.ends_with("_rq")
        {
            match last.as_bytes() {
                [class @ b'0'..=b'9', b'x', b'x'] => {
                    labels.push(("envoy_response_code_class".into(), char::from(*class).to_string()));
                    stat_name = format!("{before}_xx");
                }
                [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'] => {
                    labels.push(("envoy_response_code".into(), last.to_owned()));
                    stat_name = before.to_owned();
                }
                _ => {}
            }
        }
        if let Some(label) = self.label {
            labels.push((label.into(), self.member.to_owned()));
        }
        let family = if self.family.is_empty() { self.member } else { self.family };
        Tags { name: format!("{family}.{stat_name}"), labels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(store: &Store, query: &Query) -> Vec<String> {
        store.samples(query).into_iter().map(|sample| sample.name).collect()
    }

    #[test]
    fn a_resource_that_is_replaced_keeps_counting_where_its_predecessor_was() {
        let store = Store::default();
        let old = store.cluster("a");
        old.upstream_rq_total.inc();
        let new = store.cluster("a");
        drop(old);
        new.upstream_rq_total.inc();
        assert_eq!(new.upstream_rq_total.get(), 2);
    }

    #[test]
    fn a_resource_that_is_gone_leaves_the_output() {
        let store = Store::default();
        let filter = || Query { filter: Some(Regex::new("^cluster\\.").unwrap()), ..Query::default() };
        let cluster = store.cluster("a");
        assert!(!names(&store, &filter()).is_empty());
        drop(cluster);
        assert!(names(&store, &filter()).is_empty());
    }

    #[test]
    fn used_only_hides_what_was_never_written() {
        let store = Store::default();
        let http = store.http("in");
        http.downstream_rq_active.inc();
        http.downstream_rq_active.dec();
        http.count_response(204);
        store.register("capture.steered", Kind::Counter, || 3);
        store.register("capture.refused", Kind::Counter, || 0);
        let query = Query { used_only: true, ..Query::default() };
        let expected = [
            "capture.steered",
            "http.in.downstream_rq_2xx",
            "http.in.downstream_rq_active",
            "http.in.downstream_rq_completed",
        ];
        assert_eq!(names(&store, &query), expected);
        store.reset_counters();
        assert_eq!(names(&store, &query), ["capture.steered", "http.in.downstream_rq_active"]);
    }

    #[test]
    fn tags_are_those_of_envoy() {
        let place = |family, label, member| Place { family, label: Some(label), member };
        let cluster = place("cluster", "envoy_cluster_name", "outbound|80||a.b.svc");
        assert_eq!(
            cluster.tags("upstream_rq_503"),
            Tags {
                name: "cluster.upstream_rq".into(),
                labels: vec![
                    ("envoy_response_code".into(), "503".into()),
                    ("envoy_cluster_name".into(), "outbound|80||a.b.svc".into()),
                ],
            }
        );
        assert_eq!(cluster.tags("upstream_rq_5xx").name, "cluster.upstream_rq_xx");
        assert_eq!(
            cluster.tags("upstream_rq_5xx").labels[0],
            ("envoy_response_code_class".into(), "5".into())
        );
        assert_eq!(cluster.tags("upstream_rq_time").labels.len(), 1);
    }

    #[test]
    fn an_address_is_written_without_colons() {
        let store = Store::default();
        let _held = (store.listener("127.0.0.1:80"), store.listener("[::1]:80"));
        let query = Query { filter: Some(Regex::new("cx_total").unwrap()), ..Query::default() };
        assert_eq!(
            names(&store, &query),
            ["listener.127.0.0.1_80.downstream_cx_total", "listener.[__1]_80.downstream_cx_total"]
        );
    }
}
