//! Metadata values that endpoints carry and routes ask for (`google.protobuf.Value`), comparable and hashable.

use std::sync::Arc;

use super::Str;

/// One value. Numbers are compared bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MetadataValue {
    Null,
    Bool(bool),
    /// The bits of an `f64`.
    Number(u64),
    Text(Str),
    List(Arc<[MetadataValue]>),
    /// Sorted by key.
    Struct(Metadata),
}

/// Keys and values, sorted by key.
pub type Metadata = Arc<[(Str, MetadataValue)]>;

/// The value of `key`.
pub fn find<'a>(metadata: &'a [(Str, MetadataValue)], key: &str) -> Option<&'a MetadataValue> {
    metadata.binary_search_by(|(name, _)| (**name).cmp(key)).ok().map(|at| &metadata[at].1)
}
