//! Statistics that have no group of their own: those of filters, whose names come from configuration, and
//! Istio's standard metrics, whose labels come from the stream.
//!
//! A handle is asked for when a resource is compiled, or when a combination of labels first occurs; never for
//! every request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::store::Tags;
use super::{Counter, Gauge, Histogram};

/// Statistics by full name. Weak: the resources own their statistics.
#[derive(Debug, Default)]
pub struct Custom {
    counters: Named<Counter>,
    gauges: Named<Gauge>,
    histograms: Named<Histogram>,
}

type Named<S> = Mutex<BTreeMap<String, (Tags, Weak<S>)>>;

/// One of them, as it is now.
pub(super) enum Each {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
    Histogram(Arc<Histogram>),
}

impl Custom {
    /// The counter of this full name; equal names are the same counter.
    pub fn counter(&self, name: &str, tags: impl FnOnce() -> Tags) -> Arc<Counter> {
        handle(&self.counters, name, tags)
    }

    /// As [`Custom::counter`].
    pub fn gauge(&self, name: &str, tags: impl FnOnce() -> Tags) -> Arc<Gauge> {
        handle(&self.gauges, name, tags)
    }

    /// As [`Custom::counter`].
    pub fn histogram(&self, name: &str, tags: impl FnOnce() -> Tags) -> Arc<Histogram> {
        handle(&self.histograms, name, tags)
    }

    /// Calls `visit` with full name, tags and statistic of all that are held.
    pub(super) fn visit(&self, visit: &mut dyn FnMut(&str, &Tags, Each)) {
        for (name, tags, held) in held(&self.counters) {
            visit(&name, &tags, Each::Counter(held));
        }
        for (name, tags, held) in held(&self.gauges) {
            visit(&name, &tags, Each::Gauge(held));
        }
        for (name, tags, held) in held(&self.histograms) {
            visit(&name, &tags, Each::Histogram(held));
        }
    }
}

fn handle<S: Default>(named: &Named<S>, name: &str, tags: impl FnOnce() -> Tags) -> Arc<S> {
    let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(held) = named.get(name).and_then(|(_, weak)| weak.upgrade()) {
        return held;
    }
    let new = Arc::new(S::default());
    if named.insert(name.to_owned(), (tags(), Arc::downgrade(&new))).is_none()
        && named.len().is_power_of_two()
    {
        // What nobody holds any more leaves each time the number doubles, so that adding stays cheap.
        named.retain(|_, (_, weak)| weak.strong_count() > 0);
    }
    new
}

fn held<S>(named: &Named<S>) -> Vec<(String, Tags, Arc<S>)> {
    let named = named.lock().unwrap_or_else(PoisonError::into_inner);
    named
        .iter()
        .filter_map(|(name, (tags, weak))| Some((name.clone(), tags.clone(), weak.upgrade()?)))
        .collect()
}

/// Statistics of a filter inside a connection manager: `http.PREFIX.FILTER.NAME`.
pub fn http_tags(prefix: &str, rest: &str) -> Tags {
    Tags {
        name: format!("http.{rest}"),
        labels: vec![("envoy_http_conn_manager_prefix".into(), prefix.to_owned())],
    }
}
