//! Reads the first bytes of a connection for as long as its listener filters need them, and listens to the
//! server meanwhile: where the server speaks first, waiting for the client would be waiting for ever.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::inspect::{Detected, MAX_INSPECT_BYTES, Verdict, inspect};
use crate::model::listener::Listener;
use crate::stream::Stream;
use crate::upstream::Speaks;

/// What was read, and what it says.
#[derive(Debug, Default)]
pub(super) struct FirstBytes {
    pub(super) bytes: Bytes,
    pub(super) detected: Detected,
}

/// Which side spoke first.
pub(super) enum First<S> {
    Client(FirstBytes),
    /// With what the client has said so far.
    Server(Bytes, S),
    /// The connection ended, or the time for detection did and the listener does not continue then
    /// (`continue_on_listener_filters_timeout`).
    Nobody,
}

/// Runs the listener filters that look at what the client says, of which `bytes` were read. `server` returns when the server has spoken; it may never return.
pub(super) async fn first_bytes<S>(
    io: &mut Stream,
    mut bytes: BytesMut,
    listener: &Listener,
    port: u16,
    server: impl Future<Output = S>,
) -> First<S> {
    let (tls, http) = inspectors(listener, port);
    if !tls && !http {
        return First::Client(FirstBytes { bytes: bytes.freeze(), detected: Detected::default() });
    }
    let limit = listener.listener_filters_timeout;
    let outcome = tokio::select! {
        biased;
        outcome = within(limit, read_until_told(io, &mut bytes, tls, http)) => outcome,
        spoken = server => return First::Server(bytes.freeze(), spoken),
    };
    let detected = match outcome {
        Outcome::Told(detected) => detected,
        Outcome::TimedOut if listener.continue_on_listener_filters_timeout => Detected::default(),
        Outcome::TimedOut => {
            listener.stats.downstream_pre_cx_timeout.inc();
            return First::Nobody;
        }
        Outcome::Ended => return First::Nobody,
    };
    First::Client(FirstBytes { bytes: bytes.freeze(), detected })
}

/// Which listener filters look at connections to `port`: for TLS, for HTTP.
fn inspectors(listener: &Listener, port: u16) -> (bool, bool) {
    let filters = &listener.listener_filters;
    let tls = filters.tls_inspector.as_ref().is_some_and(|disabled| !disabled.matches(port));
    let http = filters.http_inspector.as_ref().is_some_and(|disabled| !disabled.matches(port));
    (tls, http)
}

/// What the listener filters would find in the first bytes of a client of which that is known.
pub(super) fn told(listener: &Listener, port: u16, speaks: Speaks) -> FirstBytes {
    let (_, http) = inspectors(listener, port);
    let name = match speaks {
        Speaks::Anything => None,
        Speaks::Http1 => Some("http/1.1"),
        Speaks::Http2 => Some("h2c"),
    };
    let application_protocols = name.filter(|_| http).map(str::to_owned).into_iter().collect();
    FirstBytes { bytes: Bytes::new(), detected: Detected { application_protocols, ..Detected::default() } }
}

enum Outcome {
    Told(Detected),
    Ended,
    TimedOut,
}

async fn within(limit: Option<Duration>, reading: impl Future<Output = Outcome>) -> Outcome {
    match limit {
        None => reading.await,
        Some(limit) => tokio::time::timeout(limit, reading).await.unwrap_or(Outcome::TimedOut),
    }
}

async fn read_until_told(io: &mut Stream, bytes: &mut BytesMut, tls: bool, http: bool) -> Outcome {
    if !bytes.is_empty()
        && let Verdict::Done(detected) = inspect(bytes, tls, http)
    {
        return Outcome::Told(detected);
    }
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
