//! Statistics as `/stats` shows them, as text and as JSON.

use std::fmt::Write;

use super::histogram::{QUANTILES, Summary};
use super::store::{Sample, Value};

/// How histograms are shown (`?histogram_buckets=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BucketMode {
    #[default]
    Summary,
    Cumulative,
    Disjoint,
}

/// One line for each statistic: counters and gauges, then histograms, as (interval, since start).
pub fn text(samples: &[Sample], mode: BucketMode) -> String {
    let mut out = String::new();
    for sample in samples {
        if let Value::Counter(value) | Value::Gauge(value) = sample.value {
            let _ = writeln!(out, "{}: {value}", sample.name);
        }
    }
    for sample in samples {
        let Value::Histogram { cumulative, interval } = &sample.value else { continue };
        let shown = match mode {
            BucketMode::Summary if cumulative.count() == 0 => "No recorded values".to_owned(),
            BucketMode::Summary => quantiles(interval, cumulative),
            BucketMode::Cumulative | BucketMode::Disjoint => {
                buckets(interval, cumulative, (mode, sample.bounds()))
            }
        };
        let _ = writeln!(out, "{}: {shown}", sample.name);
    }
    out
}

fn quantiles(interval: &Summary, cumulative: &Summary) -> String {
    let shown = QUANTILES.map(|percent| {
        let number = |of: &Summary| of.quantile(percent).map_or_else(|| "nan".to_owned(), |q| q.to_string());
        format!("P{percent}({},{})", number(interval), number(cumulative))
    });
    shown.join(" ")
}

fn buckets(interval: &Summary, cumulative: &Summary, (mode, bounds): (BucketMode, &[f64])) -> String {
    let mut before = (0, 0);
    let shown = bounds.iter().map(|&bound| {
        let up_to = (interval.count_to(bound), cumulative.count_to(bound));
        let (i, c) = match mode {
            BucketMode::Disjoint => (up_to.0 - before.0, up_to.1 - before.1),
            BucketMode::Summary | BucketMode::Cumulative => up_to,
        };
        before = up_to;
        format!("B{}({i},{c})", bound_name(bound))
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// As C's `%g`, which Envoy uses here: six significant digits, so exponents from a million on.
fn bound_name(bound: f64) -> String {
    if bound < 1e6 { bound.to_string() } else { format!("{}e+06", bound / 1e6) }
}

/// `{"stats":[{"name":…,"value":…},…,{"histograms":…}]}`.
pub fn json(samples: &[Sample]) -> serde_json::Value {
    let mut stats: Vec<_> = samples
        .iter()
        .filter_map(|sample| match sample.value {
            Value::Counter(value) | Value::Gauge(value) => {
                Some(serde_json::json!({ "name": sample.name, "value": value }))
            }
            Value::Histogram { .. } => None,
        })
        .collect();
    let histograms: Vec<_> = samples.iter().filter_map(computed_quantiles).collect();
    if !histograms.is_empty() {
        stats.push(serde_json::json!({ "histograms": {
            "supported_quantiles": QUANTILES,
            "computed_quantiles": histograms,
        }}));
    }
    serde_json::json!({ "stats": stats })
}

fn computed_quantiles(sample: &Sample) -> Option<serde_json::Value> {
    let Value::Histogram { cumulative, interval } = &sample.value else { return None };
    let values = QUANTILES.map(|percent| {
        serde_json::json!({
            "cumulative": cumulative.quantile(percent),
            "interval": interval.quantile(percent),
        })
    });
    Some(serde_json::json!({ "name": sample.name, "values": values }))
}

#[cfg(test)]
mod tests {
    use super::super::{Query, Store};
    use super::*;

    fn store() -> (Store, impl Sized) {
        let store = Store::default();
        let tcp = store.tcp("t");
        tcp.downstream_cx_total.add(2);
        let http = store.http("in");
        http.downstream_rq_time.record(0);
        http.downstream_rq_time.record(2);
        (store, (tcp, http))
    }

    #[test]
    fn text_is_what_envoy_prints() {
        let (store, _held) = store();
        let used = store.samples(&Query { used_only: true, ..Query::default() });
        assert_eq!(
            text(&used, BucketMode::Summary),
            "tcp.t.downstream_cx_total: 2\n\
             http.in.downstream_rq_time: P0(0,0) P25(0,0) P50(0,0) P75(2.05,2.05) P90(2.05,2.05) \
             P95(2.05,2.05) P99(2.05,2.05) P99.5(2.05,2.05) P99.9(2.05,2.05) P100(2.05,2.05)\n"
        );
        assert_eq!(
            text(&used, BucketMode::Cumulative).lines().nth(1),
            Some(
                "http.in.downstream_rq_time: B0.5(1,1) B1(1,1) B5(2,2) B10(2,2) B25(2,2) B50(2,2) B100(2,2) \
                 B250(2,2) B500(2,2) B1000(2,2) B2500(2,2) B5000(2,2) B10000(2,2) B30000(2,2) B60000(2,2) \
                 B300000(2,2) B600000(2,2) B1.8e+06(2,2) B3.6e+06(2,2)"
            )
        );
        assert!(text(&used, BucketMode::Disjoint).contains("B0.5(1,1) B1(0,0) B5(1,1) B10(0,0)"));
        let all = text(&store.samples(&Query::default()), BucketMode::Summary);
        assert!(all.contains("http.in.downstream_cx_length_ms: No recorded values\n"), "{all}");
    }

    #[test]
    fn json_has_envoys_shape() {
        let (store, _held) = store();
        let shown = json(&store.samples(&Query { used_only: true, ..Query::default() }));
        assert_eq!(shown["stats"][0], serde_json::json!({ "name": "tcp.t.downstream_cx_total", "value": 2 }));
        let histograms = &shown["stats"][1]["histograms"];
        assert_eq!(histograms["supported_quantiles"][7], 99.5);
        assert_eq!(histograms["computed_quantiles"][0]["name"], "http.in.downstream_rq_time");
        assert_eq!(histograms["computed_quantiles"][0]["values"][9]["cumulative"], 2.05);
    }
}
