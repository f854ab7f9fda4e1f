//! What users see of routing. Where Envoy's documentation leaves room, expected values are what Envoy 1.40
//! did with the same configuration and request.

mod hash;
mod headers;
mod matching;
mod retries;
mod rewrites;
mod support;
mod timeouts;
