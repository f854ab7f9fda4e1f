//! What `mongo_proxy` counts and injects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::http_filter::Delay;
use crate::telemetry::stats::{Counter, Custom, Gauge, Histogram, Tags};

/// Names that clients bring (collections, commands) and that are counted apart.
const MAX_NAMES: usize = 1000;

/// `envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy`.
#[derive(Debug)]
pub struct MongoProxy {
    /// Commands that are counted by name.
    pub commands: Vec<String>,
    pub delay: Option<Delay>,
    pub active: Arc<Gauge>,
    pub stats: MongoStats,
}

/// Statistics by name, made when they first count.
#[derive(Debug)]
pub struct MongoStats {
    pub custom: Arc<Custom>,
    /// `stat_prefix`
    pub label: String,
    pub held: Mutex<Held>,
}

/// What keeps them alive.
#[derive(Debug, Default)]
pub struct Held {
    counters: HashMap<String, Arc<Counter>>,
    histograms: HashMap<String, Arc<Histogram>>,
}

impl MongoStats {
    /// `mongo.PREFIX.REST`; `None`: there are too many already.
    pub fn counter(&self, rest: &str) -> Option<Arc<Counter>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = held.counters.get(rest) {
            return Some(counter.clone());
        }
        if held.counters.len() >= MAX_NAMES {
            return None;
        }
        let counter = self.custom.counter(&format!("mongo.{}.{rest}", self.label), || self.tags(rest));
        held.counters.insert(rest.to_owned(), counter.clone());
        Some(counter)
    }

    pub fn histogram(&self, rest: &str) -> Option<Arc<Histogram>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(histogram) = held.histograms.get(rest) {
            return Some(histogram.clone());
        }
        if held.histograms.len() >= MAX_NAMES {
            return None;
        }
        let histogram = self.custom.histogram(&format!("mongo.{}.{rest}", self.label), || self.tags(rest));
        held.histograms.insert(rest.to_owned(), histogram.clone());
        Some(histogram)
    }

    pub fn tags(&self, rest: &str) -> Tags {
        let (name, of) = match rest.split('.').collect::<Vec<_>>()[..] {
            ["cmd", command, last] => {
                (format!("mongo.cmd.{last}"), Some(("envoy_mongo_cmd".into(), command.to_owned())))
            }
            ["collection", ref names @ .., "query", last] => (
                format!("mongo.collection.query.{last}"),
                Some(("envoy_mongo_collection".into(), names.join("."))),
            ),
            _ => (format!("mongo.{rest}"), None),
        };
        let mut labels: Vec<_> = of.into_iter().collect();
        labels.push(("envoy_mongo_prefix".into(), self.label.clone()));
        Tags { name, labels }
    }
}
