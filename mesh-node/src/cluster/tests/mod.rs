//! What users see of clusters: which endpoint serves, and what holds when endpoints or configuration change.

mod balancing;
mod dns;
mod limits;
mod manager;
pub(crate) mod support;
