//! Why an upstream connection or request failed, as far as retries, logs and local replies care.

use crate::telemetry::stream_info::ResponseFlags;

/// A failure on the way to an endpoint.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}{}", details.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct UpstreamError {
    pub kind: ErrorKind,
    /// For `%UPSTREAM_TRANSPORT_FAILURE_REASON%` and the log.
    pub details: Option<String>,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// Refused, unreachable, or reset before it stood.
    #[error("connection failure")]
    ConnectFailure,
    /// `connect_timeout` passed.
    #[error("connection timeout")]
    ConnectTimeout,
    /// The handshake failed, or the peer is not who it must be.
    #[error("TLS error")]
    TlsFailure,
    /// The connection ended before a whole response head.
    #[error("connection termination")]
    Reset {
        /// The connection had served a request before: the peer may have closed it while it was idle.
        reused: bool,
        /// Bytes of the request were sent.
        request_started: bool,
    },
    /// HTTP/2 REFUSED_STREAM: the peer did nothing with the request.
    #[error("refused stream")]
    RefusedStream,
    /// The peer reset the stream with another code.
    #[error("remote reset")]
    RemoteReset,
    /// A circuit breaker is open.
    #[error("overflow")]
    Overflow,
    /// The peer broke HTTP.
    #[error("protocol error")]
    ProtocolError,
}

impl UpstreamError {
    pub fn new(kind: ErrorKind) -> Self {
        Self { kind, details: None }
    }

    pub fn with(kind: ErrorKind, details: impl ToString) -> Self {
        Self { kind, details: Some(details.to_string()) }
    }

    /// Envoy's response flag for the failure.
    pub fn response_flag(&self) -> ResponseFlags {
        match self.kind {
            ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::TlsFailure => {
                ResponseFlags::UPSTREAM_CONNECTION_FAILURE
            }
            ErrorKind::Reset { .. } => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            ErrorKind::RefusedStream | ErrorKind::RemoteReset => ResponseFlags::UPSTREAM_REMOTE_RESET,
            ErrorKind::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            ErrorKind::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        }
    }

    /// May the same request be sent again without the peer having seen it twice?
    pub fn retryable(&self) -> bool {
        match self.kind {
            ErrorKind::ConnectFailure
            | ErrorKind::ConnectTimeout
            | ErrorKind::TlsFailure
            | ErrorKind::RefusedStream => true,
            ErrorKind::Reset { request_started, .. } => !request_started,
            ErrorKind::RemoteReset | ErrorKind::Overflow | ErrorKind::ProtocolError => false,
        }
    }
}
