//! A response that is not faster than a limit (`response_rate_limit` of injected faults).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::http::body::{Body, BodyError};

/// Envoy lets a slice through twenty times a second.
const SLICE: Duration = Duration::from_millis(50);

/// Lets `kib` KiB of the body pass in a second.
pub(super) fn encode(kib: u64, response: &mut Response<Body>) {
    if response.body().is_end_stream() {
        return;
    }
    let inner = std::mem::take(response.body_mut());
    let per_slice = usize::try_from((kib * 1024 / 20).max(1)).unwrap_or(usize::MAX);
    *response.body_mut() = Body::boxed(Throttled {
        inner,
        per_slice,
        left: per_slice,
        held: None,
        sleep: Box::pin(tokio::time::sleep_until(Instant::now() + SLICE)),
    });
}

struct Throttled {
    inner: Body,
    per_slice: usize,
    /// Bytes that may still pass in this slice of time.
    left: usize,
    held: Option<Frame<Bytes>>,
    /// To the end of the slice.
    sleep: Pin<Box<Sleep>>,
}

impl http_body::Body for Throttled {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match this.held.take() {
            Some(frame) => frame,
            None => match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            },
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        if this.left == 0 {
            if this.sleep.as_mut().poll(cx).is_pending() {
                this.held = Some(Frame::data(data));
                return Poll::Pending;
            }
            this.left = this.per_slice;
            this.sleep.as_mut().reset(Instant::now() + SLICE);
        }
        if data.len() > this.left {
            this.held = Some(Frame::data(data.split_off(this.left)));
        }
        this.left -= data.len();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of what is held back too; exactness is all that a length header needs before the first frame.
        if self.held.is_none() { self.inner.size_hint() } else { SizeHint::default() }
    }
}
