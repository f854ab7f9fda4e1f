//! Istio's standard metrics: names, labels and their order as in `istio_stats` of Istio's proxy. One series for
//! each combination of labels; a workload holds its own, so that they go when it goes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::stats::{Counter, Custom, Histogram, Tags};

/// Label and value, in the order in which they are shown.
pub type Labels = Vec<(Cow<'static, str>, String)>;

/// The series that one workload holds, by their full names.
#[derive(Debug, Default)]
pub struct Held {
    counters: Mutex<HashMap<String, Arc<Counter>>>,
    histograms: Mutex<HashMap<String, Arc<Histogram>>>,
}

impl Held {
    /// The counter `metric` (`istio_requests_total`) with these labels.
    pub fn counter(&self, custom: &Custom, metric: &str, labels: &Labels) -> Arc<Counter> {
        let name = full_name(metric, labels);
        let mut held = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || custom.counter(&name, || tags(metric, labels));
        held.entry(name.clone()).or_insert_with(new).clone()
    }

    /// The histogram `metric` with these labels.
    pub fn histogram(&self, custom: &Custom, metric: &str, labels: &Labels) -> Arc<Histogram> {
        let name = full_name(metric, labels);
        let mut held = self.histograms.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || custom.histogram(&name, || tags(metric, labels));
        held.entry(name.clone()).or_insert_with(new).clone()
    }
}

fn tags(metric: &str, labels: &Labels) -> Tags {
    Tags { name: format!("istiocustom.{metric}"), labels: labels.clone() }
}

/// `istiocustom.istio_requests_total.reporter.source.…`, as `/stats` of Istio's proxy shows it.
fn full_name(metric: &str, labels: &Labels) -> String {
    let mut name = format!("istiocustom.{metric}");
    for (label, value) in labels {
        name.push('.');
        name.push_str(label);
        name.push('.');
        name.push_str(value);
    }
    name
}
