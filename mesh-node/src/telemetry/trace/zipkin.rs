//! Spans as Zipkin's collectors read them: a JSON list (`/api/v2/spans`).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Process, Span, nanos_since_epoch};

/// A list of these spans. `shared`: a server's span has the id of its client's.
pub fn request(process: &Process, shared: bool, spans: &[Span]) -> Vec<u8> {
    let all: Vec<Value> = spans.iter().map(|one| span(process, shared, one)).collect();
    serde_json::to_vec(&all).unwrap_or_default()
}

fn span(process: &Process, shared: bool, span: &Span) -> Value {
    let context = &span.context;
    let micros = |at| nanos_since_epoch(at) / 1000;
    let end = span.start + span.duration;
    let mut annotations: Vec<Value> =
        span.events.iter().map(|(at, name)| json!({"timestamp": micros(*at), "value": name})).collect();
    annotations.push(json!({"timestamp": micros(end), "value": if span.client { "cr" } else { "ss" }}));
    let tags: Map<String, Value> = span
        .tags
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
        .collect();
    let mut out = json!({
        "traceId": context.trace_id(),
        "id": format!("{:016x}", context.id),
        "name": span.name,
        "kind": if span.client { "CLIENT" } else { "SERVER" },
        "timestamp": micros(span.start),
        "duration": u64::try_from(span.duration.as_micros()).unwrap_or(u64::MAX),
        "localEndpoint": endpoint(process),
        "annotations": annotations,
        "tags": tags,
    });
    if let Some(parent) = context.parent {
        out["parentId"] = format!("{parent:016x}").into();
    }
    if shared && !span.client {
        out["shared"] = true.into();
    }
    out
}

fn endpoint(process: &Process) -> Value {
    let mut out = json!({"port": 0, "serviceName": process.service});
    match process.address {
        Some(IpAddr::V4(ip)) => out["ipv4"] = ip.to_string().into(),
        Some(IpAddr::V6(ip)) => out["ipv6"] = ip.to_string().into(),
        None => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::span;
    use super::*;

    #[test]
    fn a_span_is_what_zipkins_api_asks_for() {
        let process = Process { service: "a.b".to_owned(), address: Some("192.0.2.2".parse().unwrap()) };
        let mut span = span();
        let bytes = request(&process, true, &[span.clone()]);
        let all: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            all,
            json!([{
                "traceId": "0af7651916cd43dd8448eb211c80319c",
                "id": "b7ad6b7169203331",
                "parentId": "0000000000000001",
                "name": "op",
                "kind": "CLIENT",
                "timestamp": 1_000_001,
                "duration": 250,
                "localEndpoint": {"ipv4": "192.0.2.2", "port": 0, "serviceName": "a.b"},
                "annotations": [
                    {"timestamp": 1_000_000, "value": "first_upstream_tx_byte_sent"},
                    {"timestamp": 1_000_251, "value": "cr"},
                ],
                "tags": {"component": "proxy"},
            }])
        );
        span.client = false;
        let all: Value = serde_json::from_slice(&request(&process, true, &[span.clone()])).unwrap();
        assert_eq!((&all[0]["kind"], &all[0]["shared"]), (&json!("SERVER"), &json!(true)));
        let all: Value = serde_json::from_slice(&request(&process, false, &[span])).unwrap();
        assert_eq!(all[0]["shared"], Value::Null);
    }
}
