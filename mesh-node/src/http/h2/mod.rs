//! HTTP/2 (RFC 9113), both sides: the protocol and flow control of `h2`, our options, bounds and tasks.
//!
//! Own code around `h2` and not a server library's, because a proxy forwards what such libraries keep for
//! themselves: interim responses, extended CONNECT (RFC 8441), the order of a reset and what came before it.
//! What it must not do: let one connection hold memory without bound. Windows and header lists are capped, and
//! so are resets that a peer provokes (rapid reset); what is held counts for the workload; a flood of CONTINUATION frames is refused by `h2` itself.
//!
//! Inside the proxy an upgrade looks as in HTTP/1 whatever carries it (as in Envoy): a GET with `upgrade`, answered
//! by 101. Both sides translate to and from extended CONNECT.

mod backlog;
mod client;
mod keepalive;
mod progress;
mod receive;
mod send;
mod server;
#[cfg(test)]
mod tests;
mod unsent;

pub use client::{Failure, Handle, connect};
pub use receive::Received;
pub use server::{Options, serve};

use http::{HeaderMap, header};

use crate::model::network::Http2Options;

/// Receive window of one stream at most. Envoy's default of 16 MiB would let a single connection hold gigabytes;
/// this much fills a 10 Gbit/s link at a round trip of 0.8 ms.
const MAX_STREAM_WINDOW: u32 = 1 << 20;
/// Receive window of a connection at most.
const MAX_CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes that a stream may queue for a slow receiver.
const SEND_BUFFER: usize = 256 << 10;

/// Windows of `options`, capped: stream, then connection.
fn windows(options: &Http2Options) -> (u32, u32) {
    let stream = options.initial_stream_window_bytes.min(MAX_STREAM_WINDOW);
    (stream, options.initial_connection_window_bytes.min(MAX_CONNECTION_WINDOW).max(stream))
}

/// Removes what HTTP/2 forbids (RFC 9113 section 8.2.2). True: there was a `connection` header.
fn strip_connection_headers(headers: &mut HeaderMap) -> bool {
    for name in [header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION).is_some()
}
