//! `google.protobuf.Struct` as metadata that can be compared.

use mesh_xds::pb::envoy::config::core::v3::Metadata as MetadataProto;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use crate::model::Str;
use crate::model::metadata::{Metadata, MetadataValue, find};

/// What a message asks of hosts: its `envoy.lb` metadata, over that of the level above.
pub(super) fn criteria(own: Option<&MetadataProto>, above: Option<&Metadata>) -> Option<Metadata> {
    let own = own.and_then(|metadata| metadata.filter_metadata.get("envoy.lb")).map(fields);
    match (own, above) {
        (Some(own), Some(above)) => {
            let inherited = above.iter().filter(|(key, _)| find(&own, key).is_none());
            let mut all: Vec<_> = own.iter().chain(inherited).cloned().collect();
            all.sort_by(|(a, _), (b, _)| a.cmp(b));
            Some(all.into())
        }
        (own, above) => own.or_else(|| above.cloned()),
    }
}

/// Metadata by namespace, without those that are kept elsewhere.
pub(super) fn by_namespace(proto: Option<&MetadataProto>, without: &[&str]) -> Box<[(Str, Metadata)]> {
    let all = proto.into_iter().flat_map(|metadata| &metadata.filter_metadata);
    let kept = all.filter(|(name, _)| !without.contains(&name.as_str()));
    let mut kept: Vec<_> = kept.map(|(name, proto)| (Str::from(name.as_str()), fields(proto))).collect();
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    kept.into()
}

/// The fields of a struct, sorted.
pub(super) fn fields(proto: &Struct) -> Metadata {
    let mut fields: Vec<_> =
        proto.fields.iter().map(|(key, value)| (key.as_str().into(), self::value(value))).collect();
    fields.sort_by(|(a, _): &(crate::model::Str, _), (b, _)| a.cmp(b));
    fields.into()
}

fn value(proto: &Value) -> MetadataValue {
    match &proto.kind {
        None | Some(Kind::NullValue(_)) => MetadataValue::Null,
        Some(Kind::BoolValue(value)) => MetadataValue::Bool(*value),
        Some(Kind::NumberValue(value)) => MetadataValue::Number(value.to_bits()),
        Some(Kind::StringValue(text)) => MetadataValue::Text(text.as_str().into()),
        Some(Kind::ListValue(list)) => MetadataValue::List(list.values.iter().map(self::value).collect()),
        Some(Kind::StructValue(inner)) => MetadataValue::Struct(fields(inner)),
    }
}
