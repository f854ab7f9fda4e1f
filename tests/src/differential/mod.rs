//! The differential suite: the same bootstrap and the same requests through Envoy and through `mesh-node`,
//! and whether clients and backends could tell which of the two it was.
//!
//! Case files say only what is configured and sent, never what is right: Envoy says that. Both proxies
//! run beside each other on loopback addresses of their own, with backends of their own.

mod backend;
mod backend_h2;
mod bootstrap;
mod case;
mod client;
mod compare;
mod io;
mod known;
#[cfg(test)]
mod known_page;
mod proxy;
mod suite;
mod wire;

pub use io::Certificates;
pub use suite::{bootstraps, run};
