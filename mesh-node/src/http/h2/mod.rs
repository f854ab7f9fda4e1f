//! HTTP/2 (RFC 9113), both sides, by hyper: its protocol and flow control, our options and bounds.
//!
//! What it must not do: let one connection hold memory without bound. Windows and header lists are capped, and
//! so are resets that a peer provokes (rapid reset); a flood of CONTINUATION frames is refused by `h2` itself.

mod client;
mod io;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Failure, Handle, connect};
pub use server::{Options, serve};

use std::error::Error;
use std::future::Future;

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

/// The reason of the reset behind an error of hyper, if there is one.
pub fn reset_reason(error: &(dyn Error + 'static)) -> Option<h2::Reason> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason();
        }
        source = error.source();
    }
    None
}

/// Runs hyper's tasks on the worker that owns the connection.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
