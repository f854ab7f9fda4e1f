//! A body that comes in over HTTP/2, on either side.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};

use super::backlog::Backlog;
use crate::http::body::BodyError;

/// The data and trailers of one stream. Dropped before its end, the stream is reset.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    backlog: Rc<Backlog>,
    /// What `content-length` leaves, where there is one. `h2` holds the peer to it.
    left: Option<u64>,
    data_ended: bool,
    /// Of a response: its sender may reset the stream once it has answered in full.
    response: bool,
}

impl Received {
    /// `headers` are those that came before the body.
    pub(super) fn of_request(stream: RecvStream, headers: &HeaderMap, backlog: &Rc<Backlog>) -> Self {
        Self::new(stream, headers, backlog, false)
    }

    /// `headers` are those that came before the body.
    pub(super) fn of_response(stream: RecvStream, headers: &HeaderMap, backlog: &Rc<Backlog>) -> Self {
        Self::new(stream, headers, backlog, true)
    }

    fn new(stream: RecvStream, headers: &HeaderMap, backlog: &Rc<Backlog>, response: bool) -> Self {
        backlog.begin_body();
        let left = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { stream, backlog: backlog.clone(), left, data_ended: false, response }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                // The end of a stream often comes as a frame of its own.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.backlog.taken(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) if self.is_answered(&error) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) if self.is_answered(&error) => None,
            Err(error) => Some(Err(error.into())),
        })
    }

    /// RFC 9113 section 8.1: a server that has answered in full may ask for no more of the request.
    fn is_answered(&self, error: &h2::Error) -> bool {
        let all = self.left.is_none_or(|left| left == 0);
        self.response && all && error.reason() == Some(Reason::NO_ERROR)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let untaken = self.stream.flow_control().used_capacity();
        self.backlog.end_body(untaken);
    }
}
