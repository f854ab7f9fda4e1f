//! Envoy's administration interface over HTTP/1, so that istioctl and the habits of operators keep working.
//!
//! It shows and triggers; it decides nothing. What it shows comes through [`AdminState`]; it must not see
//! protobuf types or hold state of its own beyond log levels.

mod acceleration;
mod certs;
mod clusters;
mod config_dump;
mod listeners;
pub mod logging;
mod mask;
mod memory;
mod pages;
mod query;
mod reply;
mod runtime;
mod server_info;
mod stats;
mod workloads;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::cluster::ClusterManager;
use crate::model::Snapshot;
use crate::runtime::Runtime;
use crate::telemetry::stats::Store;
pub use acceleration::{
    AccelerationView, KnownView, PastTcpView, pod_text as acceleration_of_pod, text as acceleration_text,
};
pub use logging::Logging;
pub use workloads::{KernelCount, WorkloadView};

/// A client must send its request head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Parameters of a page.
const LARGEST_FORM: usize = 64 << 10;

/// What the pages show and trigger; implemented by the composition root.
pub trait AdminState: Send + Sync + 'static {
    fn store(&self) -> &Store;
    /// Of one pod (`NAMESPACE/NAME`) that has a configuration of its own, or those that all share.
    fn clusters(&self, workload: Option<&str>) -> Option<Arc<ClusterManager>>;
    fn runtime(&self) -> &Runtime;
    fn snapshot(&self) -> Arc<Snapshot>;
    fn stage(&self) -> Stage;
    /// The bootstrap as JSON, field names as in the protobuf files, and when it was read.
    fn bootstrap(&self) -> (serde_json::Value, SystemTime);
    /// The dynamic parts of `/config_dump`: by the message of the dump, its fields.
    /// Of one pod or of all, as [`Self::clusters`].
    fn dynamic(
        &self,
        workload: Option<&str>,
    ) -> Option<BTreeMap<&'static str, serde_json::Map<String, serde_json::Value>>>;
    /// Istio's table of names. Of one pod or of all, as [`Self::clusters`].
    fn name_table(&self, workload: Option<&str>) -> Option<serde_json::Value>;
    /// Flags and settings in effect, as an object.
    fn settings(&self) -> serde_json::Value;
    fn uptime(&self) -> Duration;
    fn workloads(&self) -> Vec<WorkloadView>;
    fn acceleration(&self) -> AccelerationView;
    /// Accelerates new connections, or not.
    fn accelerate(&self, on: bool);
    /// Hands connections off that come from now on; off, takes open ones back too.
    fn hand_off(&self, on: bool);
    fn logging(&self) -> &Logging;
    /// Opens access logs again by their paths.
    fn reopen_logs(&self);
    /// Stops accepting and tells connections to end; all listeners, or only inbound ones.
    fn drain_listeners(&self, inbound_only: bool);
    /// From now on `/ready` says `DRAINING` (or again what is so).
    fn fail_health_checks(&self, fail: bool);
    /// Ends the process in order.
    fn shut_down(&self);
}

/// How far the process is (Envoy: `ServerInfo.State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Live,
    Draining,
    PreInitializing,
    Initializing,
}

impl Stage {
    /// Envoy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// Envoy's number, the value of `server.state`.
    pub fn number(self) -> u64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::PreInitializing => 2,
            Self::Initializing => 3,
        }
    }
}

/// Serves connections until the future is dropped. An error of one connection ends that connection only.
pub async fn serve(listener: TcpListener, state: Arc<dyn AdminState>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve_connection(stream, state.clone()))),
            Err(error) => wait_after(&error).await,
        }
    }
}

/// When descriptors are used up, accepting fails at once again and again.
async fn wait_after(error: &io::Error) {
    tracing::warn!(%error, "admin: cannot accept");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn serve_connection(stream: tokio::net::TcpStream, state: Arc<dyn AdminState>) {
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let state = state.clone();
        async move {
            let (parts, body) = request.into_parts();
            let uri = with_form(&parts, body).await.unwrap_or(parts.uri);
            let reply = pages::answer(&*state, &parts.method, &uri);
            Ok::<http::Response<Full<Bytes>>, Infallible>(reply.into())
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection");
    }
}

/// Parameters may come as a form in the body.
async fn with_form(parts: &http::request::Parts, body: Incoming) -> Option<http::Uri> {
    let kind = parts.headers.get(http::header::CONTENT_TYPE)?.as_bytes();
    if parts.uri.query().is_some() || !kind.starts_with(b"application/x-www-form-urlencoded") {
        return None;
    }
    let body = Limited::new(body, LARGEST_FORM).collect().await.ok()?.to_bytes();
    format!("{}?{}", parts.uri.path(), std::str::from_utf8(&body).ok()?).parse().ok()
}

#[cfg(test)]
mod tests;
