//! The client side of Envoy's xDS v3 protocol.
//!
//! [`Delta`] and [`Sotw`] are the protocol without I/O: what to send next, and what a response says. A stream
//! task ([`open`]) moves their messages over gRPC, reconnects and keeps them across reconnects. Nothing here
//! looks into a resource beyond its name: whether one can be honoured is its owner's to say, per resource.

mod backoff;
mod channel;
mod delta;
mod file;
mod logs;
mod names;
mod nonces;
mod resource;
mod rest;
mod sotw;
mod stream;
mod ttl;

pub use backoff::Backoff;
pub use channel::{Connect, Connecting, Credentials, Io, Server, ServerOptions};
pub use delta::Delta;
pub use file::{FileError, read_file};
pub use logs::send_logs;
pub use names::shared;
pub use resource::{Problem, Received, Rejected, Resource, ResourceType, Wanted};
pub use rest::Poll;
pub use sotw::Sotw;
pub use stream::{Command, Deliver, Event, Protocol, Scope, Stream, StreamOptions, open};

#[cfg(test)]
mod rest_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
