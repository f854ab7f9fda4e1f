//! Accepts TLS for a filter chain and notes who the peer is.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::model::tls::DownstreamTls;
use crate::telemetry::stats::ListenerStats;
use crate::telemetry::stream_info::TlsInfo;
use crate::telemetry::tls_session::session_info;

/// Envoy has no default bound on the handshake; an unauthenticated peer must not hold memory for ever.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs the server side of a handshake.
///
/// # Errors
/// Any failure of the handshake, `TimedOut` when it takes longer than `timeout`.
pub async fn accept<I>(
    tls: &DownstreamTls,
    io: I,
    timeout: Option<Duration>,
    stats: &ListenerStats,
) -> io::Result<(TlsStream<I>, TlsInfo)>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    // In memory of its own, for no connection needs it for long.
    let handshake = Box::pin(handshake(tls, io));
    let stream = match tokio::time::timeout(timeout.unwrap_or(HANDSHAKE_TIMEOUT), handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            stats.ssl_connection_error.inc();
            if is_missing_certificate(&error) {
                stats.ssl_fail_verify_no_cert.inc();
            }
            return Err(error);
        }
        Err(_) => {
            stats.ssl_connection_error.inc();
            return Err(io::ErrorKind::TimedOut.into());
        }
    };
    stats.ssl_handshake.inc();
    let mut info = session_info(stream.get_ref().1);
    info.local_uri_sans = tls.local_uri_sans.clone();
    info.local_leaf = Some(tls.local_leaf.clone());
    info.peer_validated = tls.verifies_clients && !info.peer_chain.is_empty();
    Ok((stream, info))
}

/// rustls refuses a client of whose protocols (ALPN) it has none; Envoy goes on without one. Istio's clients
/// rely on it: they offer `istio` to ports whose context has only `h2` and `http/1.1`.
async fn handshake<I>(tls: &DownstreamTls, io: I) -> io::Result<TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let Some(without_alpn) = &tls.without_alpn else {
        return TlsAcceptor::from(tls.config.clone()).accept(io).await;
    };
    let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
    let own = &tls.config.alpn_protocols;
    let common = start
        .client_hello()
        .alpn()
        .is_none_or(|mut offered| offered.any(|protocol| own.iter().any(|own| own == protocol)));
    start.into_stream(if common { tls.config.clone() } else { without_alpn.clone() }).await
}

fn is_missing_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::NoCertificatesPresented))
}
