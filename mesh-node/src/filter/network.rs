//! The network filters before the last one of a chain: they admit a connection or close it.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::rbac::Subject;
use crate::model::Str;
use crate::model::http_filter::IstioStats;
use crate::model::network::{ConnectionLimit, MetadataExchange, NetworkFilter, NetworkRbac, SniForwardProxy};
use crate::model::rbac::Action;
use crate::telemetry::peer::{self, LocalPeer, Peer};
use crate::telemetry::stream_info::ConnectionInfo;

/// A peer that has agreed on the exchange says who it is at once; one that does not is nobody after this.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the filters made of a connection that they let in.
#[derive(Debug, Default)]
pub struct Admitted {
    /// `istio.stats` of the chain.
    pub stats: Option<Arc<IstioStats>>,
    /// In place of the configured cluster (`sni_cluster`).
    pub cluster: Option<Str>,
    /// The name that the client asked for is looked up so (`sni_dynamic_forward_proxy`).
    pub forward: Option<Arc<SniForwardProxy>>,
    /// The client, as it told itself.
    pub peer: Option<Arc<Peer>>,
    /// To be kept for as long as the connection lives.
    pub counted: Counts,
}

/// One connection in each limit that counts it.
#[derive(Debug, Default)]
pub struct Counts(Vec<Counted>);

/// A connection that is closed, and why.
#[derive(Debug)]
pub struct Refused {
    pub details: Cow<'static, str>,
    /// How long it is left to wait.
    pub delay: Option<Duration>,
    /// As in [`Admitted`].
    pub stats: Option<Arc<IstioStats>>,
}

/// One connection of those that a limit counts.
#[derive(Debug)]
struct Counted(Arc<ConnectionLimit>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}

/// Asks the filters before the last.
///
/// # Errors
/// The connection is to be closed.
pub fn admit(filters: &[NetworkFilter], info: &ConnectionInfo) -> Result<Admitted, Refused> {
    let mut admitted = Admitted::default();
    let stats = filters.iter().find_map(|filter| match filter {
        NetworkFilter::IstioStats(stats) => Some(stats.clone()),
        _ => None,
    });
    let refuse = |details: Cow<'static, str>, delay| Err(Refused { details, delay, stats: stats.clone() });
    for filter in filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                if let Some(details) = deny(rbac, info) {
                    return refuse(details, rbac.delay_deny);
                }
            }
            NetworkFilter::LocalRateLimit(limit) => {
                if limit.enabled.now() && !limit.bucket.take(Instant::now()) {
                    limit.rate_limited.inc();
                    return refuse("local_ratelimit_close".into(), None);
                }
            }
            NetworkFilter::ConnectionLimit(limit) if !limit.enabled.now() => {}
            NetworkFilter::ConnectionLimit(limit) => {
                if limit.active.get() >= limit.max {
                    limit.limited.inc();
                    return refuse("connection_limit_close".into(), limit.delay);
                }
                limit.active.inc();
                admitted.counted.0.push(Counted(limit.clone()));
            }
            NetworkFilter::SniCluster => {
                admitted.cluster =
                    info.requested_server_name.as_deref().filter(|n| !n.is_empty()).map(Str::from);
            }
            NetworkFilter::SniForwardProxy(own) => admitted.forward = Some(own.clone()),
            NetworkFilter::IstioStats(_)
            | NetworkFilter::MongoProxy(_)
            | NetworkFilter::MetadataExchange(_)
            | NetworkFilter::TcpProxy(_)
            | NetworkFilter::HttpConnectionManager(_) => {}
        }
    }
    admitted.stats = stats;
    Ok(admitted)
}

/// Why rules deny a connection, if they do.
fn deny(rbac: &NetworkRbac, info: &ConnectionInfo) -> Option<Cow<'static, str>> {
    let remote = info.remote.ip();
    let subject = Subject { head: None, connection: info, remote, metadata: None, filter_state: None };
    if let Some(shadow) = &rbac.rbac.shadow {
        let allowed = shadow.evaluate(&subject).allowed;
        if allowed { &rbac.stats.shadow_allowed } else { &rbac.stats.shadow_denied }.inc();
    }
    let rules = rbac.rbac.rules.as_ref()?;
    let verdict = rules.evaluate(&subject);
    if rules.action == Action::Log {
        if verdict.policy.is_some() { &rbac.stats.logged } else { &rbac.stats.not_logged }.inc();
        return None;
    }
    if verdict.allowed {
        rbac.stats.allowed.inc();
        return None;
    }
    rbac.stats.denied.inc();
    Some(verdict.details())
}

/// May the upstream side of a connection be opened before its client has said anything?
pub fn are_passive(filters: &[NetworkFilter]) -> bool {
    filters.iter().all(|filter| {
        matches!(
            filter,
            NetworkFilter::IstioStats(_) | NetworkFilter::MetadataExchange(_) | NetworkFilter::Rbac(_)
        )
    })
}

/// The exchange that `filters` ask for, if the client agreed on it.
pub fn exchange_of<'f>(filters: &'f [NetworkFilter], info: &ConnectionInfo) -> Option<&'f MetadataExchange> {
    let alpn = info.tls.as_ref()?.alpn.as_deref()?;
    filters.iter().find_map(|filter| match filter {
        NetworkFilter::MetadataExchange(exchange) if *exchange.protocol == *alpn => Some(&**exchange),
        _ => None,
    })
}

/// Tells the other end who we are, and hears who it is (`istio-peer-exchange`).
///
/// # Errors
/// The connection broke, or the other end speaks something else.
pub async fn exchange<I>(io: &mut I, local: &LocalPeer) -> io::Result<Option<Arc<Peer>>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(&local.preface).await?;
    io.flush().await?;
    match tokio::time::timeout(EXCHANGE_TIMEOUT, hear(io)).await {
        Ok(heard) => heard,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn hear<I: AsyncRead + Unpin>(io: &mut I) -> io::Result<Option<Arc<Peer>>> {
    let magic = io.read_u32().await?;
    let length = io.read_u32().await? as usize;
    if magic != peer::MAGIC || length > peer::MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no metadata exchange where one was agreed on",
        ));
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    Ok(peer::of_exchange(&message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_ends_learn_of_each_other_before_the_first_byte() {
        let end =
            |workload: &str| LocalPeer::new(workload, Peer { workload: workload.into(), ..Peer::default() });
        let (client, server) = (end("a"), end("b"));
        let (mut near, mut far) = tokio::io::duplex(4096);
        let (heard_near, heard_far) = tokio::join!(exchange(&mut near, &client), exchange(&mut far, &server));
        assert_eq!(heard_near.unwrap().unwrap().workload, "b");
        assert_eq!(heard_far.unwrap().unwrap().workload, "a");
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_peer_that_speaks_something_else_is_not_believed() {
        let (mut near, mut far) = tokio::io::duplex(4096);
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let error = exchange(&mut near, &LocalPeer::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
