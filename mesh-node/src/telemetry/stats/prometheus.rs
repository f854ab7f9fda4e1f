//! Statistics in the Prometheus text format, with Envoy's metric names, labels and order.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::histogram::Summary;
use super::store::{Kind, Sample, Tags, Value};

/// All samples, grouped by metric: counters, then gauges, then histograms, each sorted by name.
pub fn prometheus(samples: &[Sample]) -> String {
    let mut out = String::new();
    for (kind, type_name) in
        [(Kind::Counter, "counter"), (Kind::Gauge, "gauge"), (Kind::Histogram, "histogram")]
    {
        let mut metrics: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
        for sample in samples.iter().filter(|sample| kind_of(&sample.value) == kind) {
            metrics.entry(metric_name(&sample.tags.name)).or_default().push(sample);
        }
        for (metric, samples) in metrics {
            let _ = writeln!(out, "# TYPE {metric} {type_name}");
            for sample in samples {
                let labels = labels(&sample.tags);
                match &sample.value {
                    Value::Counter(value) | Value::Gauge(value) => {
                        let _ = writeln!(out, "{metric}{{{labels}}} {value}");
                    }
                    Value::Histogram { cumulative, .. } => {
                        histogram(&mut out, &metric, &labels, (cumulative, sample.bounds()));
                    }
                }
            }
        }
    }
    out
}

fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Counter(_) => Kind::Counter,
        Value::Gauge(_) => Kind::Gauge,
        Value::Histogram { .. } => Kind::Histogram,
    }
}

fn histogram(out: &mut String, metric: &str, labels: &str, (values, bounds): (&Summary, &[f64])) {
    let separator = if labels.is_empty() { "" } else { "," };
    let count = values.count();
    for bound in bounds {
        let up_to = values.count_to(*bound);
        let _ = writeln!(out, "{metric}_bucket{{{labels}{separator}le=\"{bound}\"}} {up_to}");
    }
    let _ = writeln!(out, "{metric}_bucket{{{labels}{separator}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", values.sum());
    let _ = writeln!(out, "{metric}_count{{{labels}}} {count}");
}

fn labels(tags: &Tags) -> String {
    let shown: Vec<_> =
        tags.labels.iter().map(|(label, value)| format!("{}=\"{}\"", plain(label), escaped(value))).collect();
    shown.join(",")
}

/// Metrics in a namespace of their own (Envoy: `CustomStatNamespaces`; Istio's is `istiocustom`) keep their name.
fn metric_name(name: &str) -> String {
    let (prefix, name) = match name.strip_prefix("istiocustom.") {
        Some(name) => ("", name),
        None => ("envoy_", name),
    };
    format!("{prefix}{}", plain(name))
}

/// What Prometheus does not take in names is `_`.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// Prometheus text format: backslash, line feed and quote are escaped in label values.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::super::{Query, Store};
    use super::*;

    #[test]
    fn names_labels_and_order_are_envoys() {
        let store = Store::default();
        let cluster = store.cluster("back");
        let other = store.cluster("a\"b");
        cluster.count_response(200);
        cluster.upstream_cx_active.inc();
        other.count_response(503);
        store.listener_manager().total_listeners_active.set(2);
        let used = store.samples(&Query { used_only: true, ..Query::default() });
        assert_eq!(
            prometheus(&used),
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"a\\\"b\"} 1\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"back\"} 1\n\
             # TYPE envoy_cluster_upstream_rq_completed counter\n\
             envoy_cluster_upstream_rq_completed{envoy_cluster_name=\"a\\\"b\"} 1\n\
             envoy_cluster_upstream_rq_completed{envoy_cluster_name=\"back\"} 1\n\
             # TYPE envoy_cluster_upstream_rq_xx counter\n\
             envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"5\",envoy_cluster_name=\"a\\\"b\"} 1\n\
             envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"back\"} 1\n\
             # TYPE envoy_cluster_upstream_cx_active gauge\n\
             envoy_cluster_upstream_cx_active{envoy_cluster_name=\"back\"} 1\n\
             # TYPE envoy_listener_manager_total_listeners_active gauge\n\
             envoy_listener_manager_total_listeners_active{} 2\n"
        );
    }

    #[test]
    fn histograms_have_envoys_buckets_sum_and_count() {
        let store = Store::default();
        let cluster = store.cluster("back");
        [1, 42, 43].into_iter().for_each(|ms| cluster.upstream_rq_time.record(ms));
        let used = store.samples(&Query { used_only: true, ..Query::default() });
        let shown = prometheus(&used);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "# TYPE envoy_cluster_upstream_rq_time histogram");
        assert_eq!(
            lines[1],
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"back\",le=\"0.5\"} 0"
        );
        assert_eq!(lines[2], "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"back\",le=\"1\"} 1");
        assert_eq!(
            lines[19],
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"back\",le=\"3600000\"} 3"
        );
        assert_eq!(
            lines[20],
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"back\",le=\"+Inf\"} 3"
        );
        assert!(
            lines[21].starts_with("envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"back\"} 87.0359")
        );
        assert_eq!(lines[22], "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"back\"} 3");
    }
}
