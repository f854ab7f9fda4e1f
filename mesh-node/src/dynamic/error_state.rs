//! What is wrong with resources that were not taken (`envoy.admin.v3.UpdateFailureState`).

use std::collections::BTreeMap;
use std::time::SystemTime;

use mesh_xds::client::ResourceType;

/// A resource that was rejected; the last good one serves.
#[derive(Debug, Clone)]
pub(super) struct ErrorState {
    /// The message that was not taken.
    pub(super) failed: Box<[u8]>,
    pub(super) at: SystemTime,
    pub(super) details: String,
    /// The version of the push that brought it.
    pub(super) version: String,
}

/// By type and name of the resource.
pub(super) type ErrorStates = BTreeMap<(ResourceType, String), ErrorState>;
