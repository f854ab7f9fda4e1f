//! Connections to xDS servers by way of a cluster (`envoy_grpc`): its endpoints, its TLS, its timeouts.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Version;
use mesh_xds::client::{Connect, Connecting, Io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cluster::{ClusterManager, LbContext, RoutingPriority};
use crate::model::Str;
use crate::model::cluster::UpstreamProtocol;
use crate::upstream::{Connection, Target, UpstreamPath, connect_within_limits, implied_alpn};

/// Connects to a host of the cluster of that name.
#[derive(Debug)]
pub(super) struct ViaCluster {
    pub(super) clusters: Arc<ClusterManager>,
    pub(super) name: Str,
    /// REST, not gRPC.
    pub(super) http1: bool,
}

impl Connect for ViaCluster {
    fn connect(&self) -> Connecting {
        let (clusters, name, http1) = (self.clusters.clone(), self.name.clone(), self.http1);
        Box::pin(async move {
            let cluster = clusters.get(&name).ok_or_else(|| {
                let message = format!("unknown cluster {name:?}; add it to static_resources.clusters");
                io::Error::new(io::ErrorKind::NotFound, message)
            })?;
            let host = cluster.choose(&LbContext::default()).map_err(io::Error::other)?;
            let target = Target {
                client: None,
                workload: None,
                cluster,
                host,
                path: UpstreamPath::Network,
                alpn: None,
                implied_alpn: match http1 {
                    true => implied_alpn(UpstreamProtocol::Http1, Version::HTTP_11),
                    false => implied_alpn(UpstreamProtocol::Http2, Version::HTTP_2),
                },
            };
            let connection = connect_within_limits(&target, RoutingPriority::Default, None).await;
            Ok(Box::new(Held(connection.map_err(io::Error::other)?)) as Box<dyn Io>)
        })
    }
}

/// A connection that counts against its cluster while it is open.
struct Held(Connection);

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_shutdown(cx)
    }
}
