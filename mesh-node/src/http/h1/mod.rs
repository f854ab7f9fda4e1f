//! HTTP/1.0 and HTTP/1.1 (RFC 9112), both sides.
//!
//! Own code and not a library's because a proxy on the path of every request must read, answer and reuse
//! buffers within one task, without a channel or a spawned task per message, and must refuse what two parsers
//! could read in two ways. What it must not do: know of routes or clusters, add headers that are not framing,
//! or repair a message that is ambiguous.

pub mod chunk;
pub mod client;
pub mod encode;
pub mod handed;
pub mod header_case;
pub mod parse;
pub mod server;
mod shared;
mod target;
mod timer;
mod wire;

pub use client::{Connection, Failure, Lease};
pub use server::{End, Options, serve};
pub use shared::RequestBody;

#[cfg(test)]
mod tests;
