//! Reads the first bytes of a connection for as long as its listener filters need them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::inspect::{Detected, MAX_INSPECT_BYTES, Verdict, inspect};
use crate::model::listener::Listener;

/// What was read, and what it says.
#[derive(Debug, Default)]
pub(super) struct FirstBytes {
    pub(super) bytes: Bytes,
    pub(super) detected: Detected,
}

/// Runs the listener filters. `None`: the connection ended, or their time was over and the listener does not
/// continue then (`continue_on_listener_filters_timeout`).
pub(super) async fn first_bytes(io: &mut TcpStream, listener: &Listener, port: u16) -> Option<FirstBytes> {
    let filters = &listener.listener_filters;
    let tls = filters.tls_inspector.as_ref().is_some_and(|disabled| !disabled.matches(port));
    let http = filters.http_inspector.as_ref().is_some_and(|disabled| !disabled.matches(port));
    if !tls && !http {
        return Some(FirstBytes::default());
    }
    let mut bytes = BytesMut::new();
    let outcome = match listener.listener_filters_timeout {
        None => read_until_told(io, &mut bytes, tls, http).await,
        Some(limit) => within(limit, read_until_told(io, &mut bytes, tls, http)).await,
    };
    let detected = match outcome {
        Outcome::Told(detected) => detected,
        Outcome::Ended => return None,
        Outcome::TimedOut if listener.continue_on_listener_filters_timeout => Detected::default(),
        Outcome::TimedOut => return None,
    };
    Some(FirstBytes { bytes: bytes.freeze(), detected })
}

enum Outcome {
    Told(Detected),
    Ended,
    TimedOut,
}

async fn within(limit: Duration, reading: impl Future<Output = Outcome>) -> Outcome {
    tokio::time::timeout(limit, reading).await.unwrap_or(Outcome::TimedOut)
}

async fn read_until_told(io: &mut TcpStream, bytes: &mut BytesMut, tls: bool, http: bool) -> Outcome {
    loop {
        bytes.reserve(4096);
        match io.read_buf(bytes).await {
            // A client that closes before it said anything, and one that half-closes after too little: the
            // second may still be served as raw bytes.
            Ok(0) if bytes.is_empty() => return Outcome::Ended,
            Ok(0) => return Outcome::Told(Detected::default()),
            Ok(_) => {}
            Err(_) => return Outcome::Ended,
        }
        match inspect(bytes, tls, http) {
            Verdict::Done(detected) => return Outcome::Told(detected),
            Verdict::NeedMore if bytes.len() >= MAX_INSPECT_BYTES => {
                return Outcome::Told(Detected::default());
            }
            Verdict::NeedMore => {}
        }
    }
}
