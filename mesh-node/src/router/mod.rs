//! Which route serves a request and what it asks for: matching, rewrites, redirects, header changes,
//! timeouts, retries.
//!
//! Pure and synchronous: reads a route table and the head of a request, does no I/O, keeps no state, and
//! takes chance as an argument. Matching does not allocate in the common case, and its cost does not depend
//! on how many virtual hosts there are.

mod hash;
mod headers;
mod matching;
mod redirect;
mod retry;
mod rewrite;
mod select;
mod timeout;

use http::{HeaderMap, Method};

pub use hash::{address_hash, hash_key, set_cookie};
pub use headers::{Evaluate, SetPseudo, apply_request, apply_response};
pub use matching::{header_matches, query_matches, response_header_matches, response_predicate};
pub use redirect::{redirect_location, tls_redirect_location};
pub use retry::{ResetReason, RetryPlan, Steering, back_off, hedges};
pub use rewrite::{NewHost, rewrite_host, rewrite_path, strip_port};
pub use select::{Decision, Known, Routed, route, route_knowing};
pub use timeout::{Timeouts, grpc_timeout, grpc_timeout_value, is_grpc};

/// What routing reads of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// `:scheme`: what the client says it speaks.
    pub scheme: &'a str,
    /// `:authority` or `Host`, as the client sent it.
    pub authority: &'a str,
    /// Path and query. Empty for CONNECT without a path.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

/// The path without query and fragment: what routes match.
fn just_path(path: &str) -> &str {
    let end = path.bytes().position(|b| b == b'?' || b == b'#').unwrap_or(path.len());
    &path[..end]
}

#[cfg(test)]
mod tests;
