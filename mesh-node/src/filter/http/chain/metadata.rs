//! Filters that write dynamic metadata and filter state: `header_to_metadata`, `set_metadata`,
//! `set_filter_state`.

use std::rc::Rc;

use http::{HeaderMap, Response};
use serde_json::Value;

use super::super::request::Request;
use super::super::stream::Stream;
use super::{Step, stateful_session};
use crate::http::body::Body;
use crate::model::http_filter::{
    HeaderRule, HeaderSource, HeaderToMetadata, MetadataKind, MetadataTarget, SetFilterState, SetMetadata,
};
use crate::telemetry::base64;
use std::sync::Arc;

pub(super) fn from_headers(stream: &Rc<Stream>, own: &Arc<HeaderToMetadata>, request: &mut Request) {
    apply(stream, &own.request, &mut request.parts.headers);
    if !own.response.is_empty() {
        stream.chain.push(Step::Metadata(own.clone()));
    }
}

pub(super) fn from_response(stream: &Stream, own: &HeaderToMetadata, response: &mut Response<Body>) {
    apply(stream, &own.response, response.headers_mut());
}

fn apply(stream: &Stream, rules: &[HeaderRule], headers: &mut HeaderMap) {
    for rule in rules {
        let found = match &rule.from {
            HeaderSource::Header(name) => {
                headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            }
            HeaderSource::Cookie(name) => stateful_session::cookie(headers, name),
        };
        let target = if found.is_some() { &rule.present } else { &rule.missing };
        if let Some(target) = target {
            write(stream, target, found.as_deref().unwrap_or_default());
        }
        if let (HeaderSource::Header(name), true, true) = (&rule.from, rule.remove, found.is_some()) {
            headers.remove(name);
        }
    }
}

fn write(stream: &Stream, target: &MetadataTarget, found: &str) {
    let text = match &target.rewrite {
        Some((regex, substitution)) => regex.replace_all(found, substitution.as_str()).into_owned(),
        None if target.value.is_empty() => found.to_owned(),
        None => target.value.clone(),
    };
    let text = match target.base64 {
        false => Some(text),
        true => base64::decode(text.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok()),
    };
    let value = text.filter(|text| !text.is_empty()).and_then(|text| match target.kind {
        MetadataKind::String => Some(Value::from(text)),
        MetadataKind::Number => text.parse::<f64>().ok().map(Value::from),
        MetadataKind::Struct => serde_json::from_str(&text).ok(),
    });
    if let Some(value) = value {
        let mut info = stream.info.borrow_mut();
        info.metadata_mut().entry(target.namespace.clone()).or_default().insert(target.key.clone(), value);
    }
}

pub(super) fn set(stream: &Rc<Stream>, entries: &[SetMetadata]) {
    let mut info = stream.info.borrow_mut();
    for entry in entries {
        let namespace = info.metadata_mut().entry(entry.namespace.clone()).or_default();
        if namespace.is_empty() {
            *namespace = entry.value.clone();
        } else if entry.allow_overwrite {
            merge(namespace, &entry.value);
        }
    }
}

/// Maps are merged, lists joined, anything else replaced (Envoy: `StructUtil::update`).
fn merge(into: &mut serde_json::Map<String, Value>, from: &serde_json::Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new.iter().cloned()),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

pub(super) fn set_filter_state(stream: &Rc<Stream>, entries: &[SetFilterState], request: &Request) {
    for entry in entries {
        let mut value = String::new();
        stream.evaluate(&entry.value, Some((request, &request.parts.headers)), None, &mut value);
        if value.is_empty() && entry.skip_if_empty {
            continue;
        }
        let mut info = stream.info.borrow_mut();
        let state = info.filter_state.get_or_insert_default();
        if entry.read_only && state.contains_key(&entry.key) {
            continue;
        }
        state.insert(entry.key.clone(), value);
    }
}
