//! HTTP codecs: bytes on a connection to and from messages with streaming bodies. They know nothing of
//! routes, clusters or configuration resources beyond protocol options.

pub mod body;
pub mod h1;
pub mod h2;
pub mod informational;
pub mod metered;
pub mod service;
pub mod stream_body;
