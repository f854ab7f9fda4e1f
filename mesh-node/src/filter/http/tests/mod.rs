//! What a client sees, request by request. The expected answers were recorded from Envoy 1.40.

mod answers;
mod http2;
mod istio;
mod limits;
mod lua;
mod neighbours;
mod requests;
pub mod support;
mod tracing;
mod upstreams;
