//! Answers health checks itself (`envoy.filters.http.health_check` without pass-through).

use std::rc::Rc;

use http::{HeaderMap, HeaderName, StatusCode};

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::stream::Stream;
use super::Step;
use crate::model::http_filter::HealthCheck;
use crate::router::header_matches;
use crate::telemetry::stream_info::ResponseFlags;

/// Whom a health check has found.
const CHECKED: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");

/// Tells which cluster this process is of.
pub(super) fn encode(stream: &Stream, headers: &mut HeaderMap) {
    headers.insert(CHECKED, stream.manager.local_peer().service_cluster.clone());
}

pub(super) fn decode(stream: &Rc<Stream>, own: &HealthCheck, request: &Request) -> Option<LocalReply> {
    if !own.headers.iter().all(|m| header_matches(m, &request.head())) {
        return None;
    }
    stream.info.borrow_mut().health_check = true;
    stream.chain.push(Step::HealthCheck);
    let reply = if stream.manager.connection.drain.started() {
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", "health_check_failed")
            .flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK)
    } else {
        LocalReply::new(StatusCode::OK, "", "health_check_ok")
    };
    Some(reply)
}
