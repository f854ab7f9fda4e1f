//! `google.protobuf.Struct` as metadata that can be compared.

use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use crate::model::metadata::{Metadata, MetadataValue};

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
