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

impl MetadataValue {
    /// The same as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(bits) => f64::from_bits(*bits).into(),
            Self::Text(text) => text.to_string().into(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Struct(fields) => {
                let entries = fields.iter().map(|(key, value)| (key.to_string(), value.to_json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }
}

impl From<&serde_json::Value> for MetadataValue {
    fn from(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => Self::Number(number.as_f64().unwrap_or_default().to_bits()),
            serde_json::Value::String(text) => Self::Text(text.as_str().into()),
            serde_json::Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            serde_json::Value::Object(fields) => Self::Struct(over(fields, None)),
        }
    }
}

/// These fields, and those of `under` that are not among them.
pub fn over(fields: &serde_json::Map<String, serde_json::Value>, under: Option<&Metadata>) -> Metadata {
    let own = fields.iter().map(|(key, value)| (Str::from(key.as_str()), value.into()));
    let rest =
        under.into_iter().flat_map(|under| under.iter()).filter(|(key, _)| !fields.contains_key(&**key));
    let mut all: Vec<(Str, MetadataValue)> = own.chain(rest.cloned()).collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all.into()
}

/// Keys and values, sorted by key.
pub type Metadata = Arc<[(Str, MetadataValue)]>;

/// The value of `key`.
pub fn find<'a>(metadata: &'a [(Str, MetadataValue)], key: &str) -> Option<&'a MetadataValue> {
    metadata.binary_search_by(|(name, _)| (**name).cmp(key)).ok().map(|at| &metadata[at].1)
}
