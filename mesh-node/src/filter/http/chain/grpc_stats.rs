//! Counts the messages of gRPC streams (`envoy.filters.http.grpc_stats`), for Istio's metrics. Other requests
//! pass untouched.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};

use super::super::request::Request;
use super::super::stream::Stream;
use super::Step;
use crate::http::body::{Body, BodyError};

/// Messages of one stream so far.
#[derive(Debug, Default)]
pub struct Messages {
    pub request: Cell<u64>,
    pub response: Cell<u64>,
}

pub(super) fn decode(stream: &Rc<Stream>, request: &mut Request) {
    if !stream.grpc {
        return;
    }
    let messages = Rc::new(Messages::default());
    *stream.chain.messages.borrow_mut() = Some(messages.clone());
    stream.chain.push(Step::GrpcStats(messages.clone()));
    if !request.body.is_end_stream() {
        let inner = std::mem::take(&mut request.body);
        request.body =
            Body::boxed(Counted { inner, messages, of_request: true, frame: GrpcFrame::default() });
    }
}

pub(super) fn encode(messages: &Rc<Messages>, response: &mut Response<Body>) {
    if !response.body().is_end_stream() {
        let inner = std::mem::take(response.body_mut());
        let messages = messages.clone();
        *response.body_mut() =
            Body::boxed(Counted { inner, messages, of_request: false, frame: GrpcFrame::default() });
    }
}

/// Where in the framing of gRPC (one flag byte, four bytes of length, the message) a body is.
#[derive(Debug, Default)]
struct GrpcFrame {
    header: usize,
    length: usize,
}

impl GrpcFrame {
    /// Messages that begin in `data`.
    fn count(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while let Some((&byte, rest)) = data.split_first() {
            if self.header < 5 {
                if self.header > 0 {
                    self.length = self.length << 8 | usize::from(byte);
                }
                self.header += 1;
                data = rest;
                if self.header == 5 {
                    begun += 1;
                }
            }
            if self.header == 5 {
                let skip = self.length.min(data.len());
                self.length -= skip;
                data = &data[skip..];
                if self.length == 0 {
                    *self = Self::default();
                }
            }
        }
        begun
    }
}

struct Counted {
    inner: Body,
    messages: Rc<Messages>,
    of_request: bool,
    frame: GrpcFrame,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let count = if this.of_request { &this.messages.request } else { &this.messages.response };
            count.set(count.get() + this.frame.count(data));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 2], b"de"].concat();
        for size in 1..=bytes.len() {
            let mut frame = GrpcFrame::default();
            let counted: u64 = bytes.chunks(size).map(|chunk| frame.count(chunk)).sum();
            assert_eq!(counted, 3, "in pieces of {size}");
        }
    }
}
