//! The body of a message, whatever carries it.
//!
//! Bodies stay on the worker that reads them: nothing here is `Send`. A body reads only when it is polled, so
//! that a slow receiver slows its sender.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;

use super::h1::RequestBody;
use super::h1::client::ResponseBody;
use super::h2::Received;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer closed or reset before the end.
    #[error("connection ended before the end of the body")]
    Incomplete,
    /// The peer broke the protocol (bad chunk, length mismatch).
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    #[error("HTTP/2 stream: {0}")]
    H2(#[from] h2::Error),
    #[error("I/O: {0}")]
    Io(#[from] std::io::Error),
    /// A limit or timeout of ours.
    #[error("{0}")]
    Aborted(&'static str),
}

impl BodyError {
    /// The reason of an HTTP/2 reset, if that is what ended the body.
    pub fn reset_reason(&self) -> Option<h2::Reason> {
        match self {
            Self::H2(error) => error.reason(),
            _ => None,
        }
    }
}

impl From<Infallible> for BodyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A streaming body: data frames, then at most one trailers frame.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Full(Option<Bytes>),
    /// Of a request that an HTTP/1 client sends us.
    H1Request(RequestBody),
    /// Of a response that an HTTP/1 server sends us.
    H1Response(ResponseBody),
    H2(Received),
    Boxed(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::H1Request(_) => "H1Request",
            Self::H1Response(_) => "H1Response",
            Self::H2(_) => "H2",
            Self::Boxed(_) => "Boxed",
        })
    }
}

impl Body {
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }

    pub fn boxed(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::Boxed(Box::pin(body))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::H1Request(body) => body.poll_frame(cx),
            Self::H1Response(body) => body.poll_frame(cx),
            Self::H2(body) => body.poll_frame(cx),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::H1Request(body) => body.is_end_stream(),
            Self::H1Response(body) => body.is_end_stream(),
            Self::H2(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Empty | Self::Full(None) => http_body::SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Self::H1Request(body) => body.size_hint(),
            Self::H1Response(body) => body.size_hint(),
            Self::H2(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}
