//! Whether two outcomes of a case are the same to a client, a backend and whoever reads the access log.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::backend::Record;
use super::case::{Case, Choice};
use super::client::Answer;
use super::wire::Headers;

/// Headers whose values differ from run to run; that they are there is compared.
const VARYING: [&str; 3] = ["date", "x-request-id", "x-envoy-upstream-service-time"];

/// What one proxy made of a case.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub seen: Vec<Record>,
    pub log: Vec<String>,
}

/// One line for each difference; none if the outcomes agree.
pub fn differences(case: &Case, envoy: &Outcome, mesh: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if case.compare.status_only {
        let statuses = |o: &Outcome| {
            let of = |a: &Answer| if a.status == 0 { a.end.clone() } else { a.status.to_string() };
            Value::from(o.answers.iter().map(of).collect::<Vec<_>>())
        };
        diff("answers", &statuses(envoy), &statuses(mesh), &mut found);
        return found;
    }
    choice(&case.compare.choice, envoy, mesh, &mut found);
    let any_order = !matches!(case.compare.choice, Choice::Exact);
    let (mut envoy, mut mesh) = (envoy.clone(), mesh.clone());
    for outcome in [&mut envoy, &mut mesh] {
        outcome.answers.iter_mut().for_each(|answer| {
            normalise(&mut answer.headers, case);
            normalise(&mut answer.trailers, case);
        });
        outcome.seen.iter_mut().for_each(|record| normalise(&mut record.headers, case));
        if any_order {
            forget_backends(outcome);
        }
        if case.compare.no_log.is_some() {
            outcome.log.clear();
        }
    }
    let value = |outcome: &Outcome| serde_json::to_value(outcome).unwrap_or_default();
    diff("", &value(&envoy), &value(&mesh), &mut found);
    found
}

fn normalise(headers: &mut Headers, case: &Case) {
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if VARYING.contains(&&*lower) || case.compare.mask.contains(&lower) {
            *value = "*".to_owned();
        }
    }
}

/// Takes out which backend it was, where the case does not compare that request by request.
fn forget_backends(outcome: &mut Outcome) {
    for record in &mut outcome.seen {
        record.backend.clear();
        record.headers.retain(|(name, _)| name != "x-case");
    }
    for answer in &mut outcome.answers {
        answer.headers.retain(|(name, _)| name != "x-backend");
        if answer.body.starts_with("hello from ") {
            answer.body = "hello".to_owned();
        }
    }
    // The log names the cluster.
    outcome.log.clear();
}

fn choice(rule: &Choice, envoy: &Outcome, mesh: &Outcome, found: &mut Vec<String>) {
    let order = |o: &Outcome| o.seen.iter().map(|r| r.backend.clone()).collect::<Vec<_>>();
    let (ours, theirs) = (order(mesh), order(envoy));
    match rule {
        Choice::Exact => {}
        Choice::Cyclic => {
            let same = (0..theirs.len().max(1)).any(|n| {
                let mut rotated = theirs.clone();
                rotated.rotate_left(n.min(theirs.len()));
                rotated == ours
            });
            if !same {
                found.push(format!("order of backends: envoy {theirs:?}, mesh-node {ours:?}"));
            }
        }
        Choice::Counts => {
            let sizes = |order: &[String]| {
                let mut sizes: Vec<_> = counts(order).into_values().collect();
                sizes.sort_unstable();
                sizes
            };
            if sizes(&theirs) != sizes(&ours) {
                found.push(format!(
                    "requests per backend: envoy {:?}, mesh-node {:?}",
                    counts(&theirs),
                    counts(&ours)
                ));
            }
        }
        Choice::Share(tolerance) => {
            let (theirs, ours) = (counts(&theirs), counts(&ours));
            let total = theirs.values().sum::<usize>().max(1) as f64;
            let apart = theirs.keys().chain(ours.keys()).any(|name| {
                let share = |of: &BTreeMap<String, usize>| of.get(name).copied().unwrap_or(0) as f64 / total;
                (share(&theirs) - share(&ours)).abs() > *tolerance
            });
            if apart || theirs.keys().ne(ours.keys()) {
                found.push(format!("requests per backend: envoy {theirs:?}, mesh-node {ours:?}"));
            }
        }
    }
}

fn counts(order: &[String]) -> BTreeMap<String, usize> {
    order.iter().fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name.clone()).or_default() += 1;
        counts
    })
}

/// Where two values differ. Lists of header pairs are compared by name.
fn diff(at: &str, envoy: &Value, mesh: &Value, found: &mut Vec<String>) {
    match (envoy, mesh) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                diff(&format!("{at}.{key}"), value, b.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if at.ends_with("headers") || at.ends_with("trailers") => {
            let only = |from: &[Value], other: &[Value]| {
                let of = from.iter().filter(|header| !other.contains(header));
                of.map(|h| format!("{}: {}", text(&h[0]), text(&h[1]))).collect::<Vec<_>>()
            };
            let (theirs, ours) = (only(a, b), only(b, a));
            found.push(format!("{at}: envoy has {theirs:?}, mesh-node has {ours:?}"));
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                diff(&format!("{at}[{n}]"), a, b, found);
            }
        }
        (a, b) => found.push(format!("{at}: envoy {a}, mesh-node {b}")),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
