//! Waits for whole requests (`envoy.filters.http.buffer`), so that upstreams never wait for slow clients.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::super::stream::Stream;
use crate::http::body::{Body, BodyError};
use crate::model::http_filter::Buffer;

/// How much may be buffered, if the request has a body to wait for.
pub(super) fn needed(buffer: Buffer, stream: &Stream, request: &Request) -> Option<usize> {
    let waits = buffer.max_request_bytes > 0 && !stream.upgrade && !request.body.is_end_stream();
    waits.then_some(buffer.max_request_bytes)
}

pub(super) async fn decode(limit: usize, stream: &Rc<Stream>, request: &mut Request) -> Option<LocalReply> {
    let mut buffered = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = request.body.frame().await {
        stream.touch();
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                // Nobody is there to hear the answer.
                stream.fail_request(&error);
                return Some(LocalReply::new(StatusCode::BAD_REQUEST, "", "request_payload_broken"));
            }
        };
        match frame.into_data() {
            Ok(data) if buffered.len() + data.len() > limit => {
                let details = "request_payload_too_large";
                stream.info.borrow_mut().bytes_received += (buffered.len() + data.len()) as u64;
                return Some(LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", details));
            }
            Ok(data) => buffered.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let data = buffered.freeze();
    // Without trailers the length is known now.
    if trailers.is_none() && !request.parts.headers.contains_key(CONTENT_LENGTH) {
        request.parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(data.len()));
    }
    request.body = match trailers {
        None => Body::from_bytes(data),
        Some(trailers) => with_trailers(data, trailers),
    };
    None
}

/// A body that is whole.
pub(super) fn with_trailers(data: Bytes, trailers: HeaderMap) -> Body {
    Body::boxed(WithTrailers { data: Some(data), trailers: Some(trailers) })
}

struct WithTrailers {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = self.data.take().filter(|data| !data.is_empty()).map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        std::task::Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }
}
