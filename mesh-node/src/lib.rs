//! The node proxy.
