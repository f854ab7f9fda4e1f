//! The node proxy: steers the pods of a node to itself and proxies them at L4 and L7.
//!
//! Modules in data-flow order; each stage imports only the stages after it, plus `model` and `telemetry`.

pub mod admin;
pub mod app;
pub mod budget;
pub mod capture;
pub mod cluster;
pub mod config;
pub mod drain;
pub mod dynamic;
pub mod filter;
pub mod heap;
pub mod http;
pub mod kubernetes;
pub mod listener;
pub mod model;
pub mod pipe;
pub mod readiness;
pub mod resting;
pub mod router;
pub mod runtime;
pub mod stream;
pub mod telemetry;
pub mod turn;
pub mod upstream;
pub mod xds;
