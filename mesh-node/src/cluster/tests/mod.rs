//! What users see of clusters: which endpoint serves, and what holds when endpoints or configuration change.

mod balancing;
mod checks;
mod dns;
mod hashing;
mod limits;
mod manager;
mod outliers;
mod slow_start;
mod subsets;
pub(crate) mod support;
mod zones;
