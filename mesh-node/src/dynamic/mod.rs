//! The configuration of one virtual sidecar as it comes: from `dynamic_resources` and the static resources of
//! the bootstrap to what is published.
//!
//! [`Assembly`] keeps the resources and decides what goes into service when, without I/O: make-before-break. A
//! [`Sidecar`] gives it what streams and files bring and carries out what it says. [`Compiler`] turns bytes into
//! compiled resources, each content once for all sidecars of the process. Nothing here serves a connection.

mod assembly;
mod compile;
mod connect;
mod direct;
mod dump;
mod error_state;
mod extensions;
mod late;
mod log_stream;
mod node;
#[cfg(test)]
mod recordings;
mod scopes;
mod sidecar;
mod slot;
mod sources;
mod subscriptions;
#[cfg(test)]
mod tests;
mod virtual_hosts;
mod watch;

pub use assembly::{Assembled, Assembly, Statics, Step};
pub use compile::Compiler;
pub use log_stream::send_remote_logs;
pub use node::{local_cluster, node_of};
pub use sidecar::{Identity, Outlet, Refused, Sidecar};
pub use sources::Servers;
pub use watch::Watch;
