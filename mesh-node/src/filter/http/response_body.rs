//! The response body on its way downstream: counts bytes, enforces the stream's limits, and ends the stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::reset::{self, ResetReason};
use super::stream::{Expired, Owner, Stream};
use super::timer::Timer;
use crate::http::body::{Body, BodyError};
use crate::telemetry::stream_info::ResponseFlags;

/// A response body; ends its stream when it ends or is dropped.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Body,
    owner: Option<Owner>,
    timer: Timer,
    from_upstream: bool,
}

impl ResponseBody {
    /// `from_upstream`: an error of `inner` is an upstream's.
    pub fn new(inner: Body, owner: Owner, timer: Timer, from_upstream: bool) -> Self {
        Self { inner, owner: Some(owner), timer, from_upstream }
    }

    /// The answer to a request that never became a stream.
    pub fn untracked(inner: Body, timer: Timer) -> Self {
        Self { inner, owner: None, timer, from_upstream: false }
    }

    fn finish(&mut self) {
        if let Some(owner) = self.owner.take() {
            if self.from_upstream {
                owner.complete_upstream();
            }
            owner.finish();
        }
    }

    fn expire(&mut self, expired: Expired) -> BodyError {
        let Some(owner) = self.owner.take() else { return BodyError::Aborted("stream ended") };
        let text = expire(&owner, expired);
        owner.finish();
        BodyError::Aborted(text)
    }
}

/// Notes that a stream whose response has begun reached a limit.
fn expire(stream: &Stream, expired: Expired) -> &'static str {
    let stats = &stream.manager.hcm.stats;
    match expired {
        Expired::Idle => {
            stats.downstream_rq_idle_timeout.inc();
            stream.fail(ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
            "stream idle timeout"
        }
        Expired::Request => {
            stats.downstream_rq_timeout.inc();
            stream.fail(ResponseFlags::default(), "request_overall_timeout");
            "request timeout"
        }
        Expired::MaxDuration => {
            stats.downstream_rq_max_duration_reached.inc();
            stream.fail(ResponseFlags::DURATION_TIMEOUT, "max_duration_timeout");
            "stream duration timeout"
        }
        Expired::Try(limit) => {
            if let Some(upstream) = &*stream.upstream() {
                limit.count(&upstream.cluster);
            }
            let (flag, details) = limit.explanation();
            stream.fail(flag, details);
            "upstream stream too slow"
        }
        Expired::Response => {
            stream.upstream_timed_out();
            stream.fail(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "response_timeout");
            "upstream request timeout"
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(owner) = &this.owner else { return Pin::new(&mut this.inner).poll_frame(cx) };
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Pending => match owner.poll_expired(cx, &mut this.timer) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(expired) => {
                    let error = this.expire(expired);
                    // The upstream stream is reset now, not when the codec lets go of this.
                    this.inner = Body::Empty;
                    Poll::Ready(Some(Err(error)))
                }
            },
            Poll::Ready(Some(Ok(frame))) => {
                owner.touch();
                if let Some(data) = frame.data_ref() {
                    owner.info.borrow_mut().bytes_sent += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    owner.log_trailers(trailers);
                }
                if frame.is_trailers() || this.inner.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if this.from_upstream {
                    let reason = match &error {
                        // Envoy: a connection that ends within a framed body broke the framing.
                        BodyError::Malformed(_) | BodyError::Incomplete => ResetReason::ProtocolError,
                        BodyError::Io(_) => ResetReason::ConnectionTermination,
                        BodyError::H2(_) => ResetReason::RemoteReset,
                        BodyError::Aborted(_) => ResetReason::LocalReset,
                    };
                    owner.fail(reason.response_flag(), reset::details("after", reason, None));
                }
                this.finish();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A codec that knows that nothing more comes does not ask for it.
        if self.inner.is_end_stream() || self.owner.as_ref().is_some_and(|o| o.head) {
            self.finish();
        }
    }
}
