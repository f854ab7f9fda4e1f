//! What the node tells about itself: statistics, access logs, and the per-stream facts they are made of.

pub mod access_log;
pub mod base64;
mod cel;
pub mod certificate;
pub mod format;
pub mod grpc_status;
pub mod istio_metrics;
pub mod log_file;
pub mod log_filter;
mod operators;
pub mod peer;
pub mod remote_log;
pub mod response_flags;
pub mod stats;
pub mod stream_info;
mod time;
pub mod tls_session;
pub mod trace;

pub use operators::protocol;

/// A point in time as Envoy's messages write it: `2016-12-15T16:07:39.000Z`.
pub fn iso8601(at: std::time::SystemTime) -> String {
    let mut text = String::new();
    time::iso8601_ms(at, &mut text);
    text
}
