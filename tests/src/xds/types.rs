//! What both forms of the protocol keep of a stream, for each type.

use std::collections::BTreeSet;

use mesh_xds::client::ResourceType;

/// What became of something that the node was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Acked(ResourceType),
    Nacked(ResourceType, String),
}

/// A response to be sent, and what to write down of it.
#[derive(Debug, PartialEq)]
pub(super) struct Due<R> {
    pub(super) kind: ResourceType,
    pub(super) version: String,
    /// How many resources it holds and removes.
    pub(super) counts: (usize, usize),
    /// How many resources the node then has been sent in all.
    pub(super) held: usize,
    pub(super) response: R,
}

/// What a node wants of a type.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) all: bool,
    pub(super) names: BTreeSet<String>,
}

/// Nonces of one stream.
#[derive(Debug, Default)]
pub(super) struct Nonces(u64);

impl Nonces {
    pub(super) fn next(&mut self) -> String {
        self.0 += 1;
        self.0.to_string()
    }
}
