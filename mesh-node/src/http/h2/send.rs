//! A body that goes out over HTTP/2, on either side.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::Body;

use super::unsent::Unsent;
use crate::budget::Purse;
use crate::http::body::BodyError;

/// Why a body was not sent whole.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer reset the stream, or (false) the connection is gone.
    Peer { reset: bool },
    /// The body itself failed; the stream is still open.
    Body(BodyError),
}

/// Sends the frames of a body as windows and buffers allow.
#[derive(Debug)]
pub(super) struct Sender {
    unsent: Unsent,
    /// Polled from the body and not sent yet; true is the last.
    waiting: Option<(Bytes, bool)>,
}

impl Sender {
    /// `purse`: where what is queued counts.
    pub(super) fn new(purse: Option<Rc<Purse>>) -> Self {
        Self { unsent: Unsent::new(purse), waiting: None }
    }

    /// Ready once all of `body` is queued.
    pub(super) fn poll<B>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
        mut body: Pin<&mut B>,
    ) -> Poll<Result<(), Broken>>
    where
        B: Body<Data = Bytes, Error = BodyError>,
    {
        let gone = |_| Broken::Peer { reset: false };
        loop {
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(Broken::Peer { reset: reset.is_ok() }));
            }
            if let Some((data, last)) = self.waiting.take() {
                // An empty frame needs no room.
                while !data.is_empty() && stream.capacity() == 0 {
                    match stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => return Poll::Ready(Err(Broken::Peer { reset: false })),
                        Poll::Pending => {
                            self.waiting = Some((data, last));
                            return Poll::Pending;
                        }
                    }
                }
                stream.send_data(self.unsent.count(data), last).map_err(gone)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(self.unsent.poll_turn(cx));
            let frame = match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(Broken::Body(error))),
                None => return Poll::Ready(stream.send_data(Bytes::new(), true).map_err(gone)),
            };
            match frame.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        // One byte is a claim on the window; what is queued beyond it claims the rest. Claiming
                        // before there is data would keep the connection's window from other streams.
                        stream.reserve_capacity(1);
                    }
                    self.waiting = Some((data, body.is_end_stream()));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        stream.reserve_capacity(0);
                        return Poll::Ready(stream.send_trailers(trailers).map_err(gone));
                    }
                }
            }
        }
    }
}

/// Sends all of `body`. What is queued counts in `purse`.
pub(super) async fn send<B>(
    mut body: Pin<&mut B>,
    stream: &mut SendStream<Bytes>,
    purse: Option<Rc<Purse>>,
) -> Result<(), Broken>
where
    B: Body<Data = Bytes, Error = BodyError>,
{
    let mut sender = Sender::new(purse);
    poll_fn(|cx| sender.poll(cx, stream, body.as_mut())).await
}
