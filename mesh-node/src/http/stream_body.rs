//! Bodies that are the bytes of a stream, for tunnels: a connection inside an exchange.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::body::{Body, BodyError};

/// Read at once.
const READ_BYTES: usize = 16 * 1024;

/// What can be read of a stream, to its end. `held` is dropped with it.
pub struct StreamBody<R, H> {
    read: R,
    buffer: BytesMut,
    _held: H,
}

impl<R, H> StreamBody<R, H> {
    pub fn new(read: R, held: H) -> Self {
        Self { read, buffer: BytesMut::new(), _held: held }
    }
}

impl<R: AsyncRead + Unpin, H: Unpin> http_body::Body for StreamBody<R, H> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.buffer.reserve(READ_BYTES);
        let count = ready!(pin!(this.read.read_buf(&mut this.buffer)).poll(cx));
        Poll::Ready(match count {
            Ok(0) => None,
            Ok(_) => Some(Ok(Frame::data(this.buffer.split().freeze()))),
            Err(error) => Some(Err(error.into())),
        })
    }
}

/// Writes the data of a body until it ends, or the stream takes no more.
pub async fn write_all<W: AsyncWrite + Unpin>(mut body: Body, mut stream: W) {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return };
        if let Ok(data) = frame.into_data()
            && stream.write_all(&data).await.is_err()
        {
            return;
        }
    }
    // The end of what came; the other direction may go on.
    drop(stream.shutdown().await);
}
