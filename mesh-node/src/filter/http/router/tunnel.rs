//! A CONNECT that ends at this proxy (`connect_config`): what its client sends goes to the host's connection, and
//! what comes from there is the body of a 200 (Envoy: `TcpUpstream`).

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::cluster::ConnectionGuard;
use crate::http::body::{Body, BodyError};
use crate::upstream::{Connection, UpstreamStream};

/// Read at once from the host.
const READ_BYTES: usize = 16 * 1024;

/// The answer to a CONNECT whose connection stands. What the client sends is passed on until it ends, or the host
/// takes no more.
pub(super) fn response(connection: Connection, sent: Body) -> Response<Body> {
    let (read, write) = tokio::io::split(connection.stream);
    tokio::task::spawn_local(pass_on(sent, write));
    Response::new(Body::boxed(FromHost { read, buffer: BytesMut::new(), _guard: connection.guard }))
}

async fn pass_on(mut sent: Body, mut host: WriteHalf<UpstreamStream>) {
    while let Some(Ok(frame)) = sent.frame().await {
        if let Ok(data) = frame.into_data()
            && host.write_all(&data).await.is_err()
        {
            return;
        }
    }
    // The end of what the client sends; the host may go on.
    drop(host.shutdown().await);
}

/// What the host sends.
struct FromHost {
    read: ReadHalf<UpstreamStream>,
    buffer: BytesMut,
    _guard: ConnectionGuard,
}

impl http_body::Body for FromHost {
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
