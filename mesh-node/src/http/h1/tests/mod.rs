//! The codec over loopback sockets and buffers.

mod client;
mod exchange;
mod heads;
mod smoke;
mod support;
