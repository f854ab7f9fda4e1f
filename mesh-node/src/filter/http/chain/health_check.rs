//! Answers health checks itself (`envoy.filters.http.health_check` without pass-through).

use std::rc::Rc;

use http::StatusCode;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::stream::Stream;
use crate::model::http_filter::HealthCheck;
use crate::router::header_matches;
use crate::telemetry::stream_info::ResponseFlags;

pub(super) fn decode(stream: &Rc<Stream>, own: &HealthCheck, request: &Request) -> Option<LocalReply> {
    if !own.headers.iter().all(|m| header_matches(m, &request.head())) {
        return None;
    }
    stream.info.borrow_mut().health_check = true;
    let reply = if stream.manager.connection.drain.started() {
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", "health_check_failed")
            .flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK)
    } else {
        LocalReply::new(StatusCode::OK, "", "health_check_ok")
    };
    Some(reply)
}
