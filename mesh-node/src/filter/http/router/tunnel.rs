//! A CONNECT that ends at this proxy (`connect_config`): what its client sends goes to the host's connection, and
//! what comes from there is the body of a 200 (Envoy: `TcpUpstream`).

use http::Response;

use crate::http::body::Body;
use crate::http::stream_body::{StreamBody, write_all};
use crate::upstream::Connection;

/// The answer to a CONNECT whose connection stands. What the client sends is passed on until it ends, or the host
/// takes no more.
pub(super) fn response(connection: Connection, sent: Body) -> Response<Body> {
    let (read, write) = tokio::io::split(connection.stream);
    tokio::task::spawn_local(write_all(sent, write));
    Response::new(Body::boxed(StreamBody::new(read, connection.guard)))
}
