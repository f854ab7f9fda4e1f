//! The body of a message, whatever carries it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

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
    H2(#[from] hyper::Error),
    #[error("I/O: {0}")]
    Io(#[from] std::io::Error),
    /// A limit or timeout of ours.
    #[error("{0}")]
    Aborted(&'static str),
}

impl From<Infallible> for BodyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A streaming body: data frames, then at most one trailers frame.
#[derive(Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    Full(Option<Bytes>),
    H2(hyper::body::Incoming),
    Boxed(UnsyncBoxBody<Bytes, BodyError>),
}

impl Body {
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }
    pub fn boxed(body: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Boxed(body.boxed_unsync())
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
            Self::H2(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::H2),
            Self::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::H2(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Empty | Self::Full(None) => http_body::SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Self::H2(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}
