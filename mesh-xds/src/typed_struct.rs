//! `TypedStruct`: a message named by its type, its fields in a free-form struct. Control planes send what they
//! have no compiled type for in this way; readers must not have to care.

use crate::node::{Content, Node};
use crate::problem::Problem;
use crate::schema::Message;
use crate::wire::{Malformed, Reader, Value};
use crate::{decode, wkt};

/// Is this the full name of a `TypedStruct`?
pub(crate) fn is(name: &str) -> bool {
    matches!(name, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// It describes no message that is known, or not as that message is.
pub(crate) struct Unresolved {
    /// The type that it names.
    pub name: String,
}

/// Full name of the described type.
pub(crate) fn described(bytes: &[u8]) -> Result<String, Malformed> {
    let (url, _) = parts(bytes)?;
    Ok(url.rsplit('/').next().unwrap_or_default().to_owned())
}

/// The described message, from the bytes of a `TypedStruct`.
pub(crate) fn resolve(bytes: &[u8]) -> Result<(Message, Vec<u8>), Unresolved> {
    let unresolved = |name: &str| Unresolved { name: name.to_owned() };
    let (url, value) = parts(bytes).map_err(|_| unresolved("TypedStruct"))?;
    let name = url.rsplit('/').next().unwrap_or_default();
    let of = Message::named(name).ok_or_else(|| unresolved(name))?;
    let json = wkt::to_json(value, "google.protobuf.Struct").map_err(|_| unresolved(name))?;
    let bytes = decode::encode(&node(&json), of).map_err(|_: Vec<Problem>| unresolved(name))?;
    Ok((of, bytes))
}

fn parts(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut url, mut value) = ("", &[][..]);
    let mut reader = Reader(bytes);
    while let Some((number, part)) = reader.next()? {
        match (number, part) {
            (1, Value::Bytes(text)) => url = std::str::from_utf8(text).map_err(|_| Malformed)?,
            (2, Value::Bytes(inner)) => value = inner,
            _ => {}
        }
    }
    Ok((url, value))
}

fn node(json: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let content = match json {
        Json::Null => Content::Null,
        Json::Bool(v) => Content::Scalar(v.to_string(), true),
        Json::Number(v) => Content::Scalar(v.to_string(), true),
        Json::String(v) => Content::Scalar(v.clone(), false),
        Json::Array(items) => Content::List(items.iter().map(node).collect()),
        Json::Object(map) => Content::Map(map.iter().map(|(k, v)| (k.clone(), node(v))).collect()),
    };
    Node { line: 0, content }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use crate::pb::google::protobuf::Any;
    use crate::wire::{Value, put};
    use crate::{Node, istio, unpack};

    fn typed_struct(url: &str, value: &str) -> Any {
        let value = Node::parse(value).unwrap();
        let value: crate::pb::google::protobuf::Struct = crate::from_node(&value).unwrap();
        let mut bytes = Vec::new();
        put(&mut bytes, 1, Value::Bytes(url.as_bytes()));
        put(&mut bytes, 2, Value::Bytes(&value.encode_to_vec()));
        Any { type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(), value: bytes }
    }

    #[test]
    fn a_typed_struct_off_the_wire_is_read_as_the_message_it_describes() {
        let url = "type.googleapis.com/io.istio.http.peer_metadata.Config";
        let any = typed_struct(
            url,
            "{upstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}], \
             upstream_propagation: [{istio_headers: {skip_external_clusters: true}}]}",
        );
        let config = unpack::<istio::peer_metadata::Config>(&any).unwrap().unwrap();
        assert_eq!(config.upstream_discovery.len(), 2);
        let headers = config.upstream_propagation[0].istio_headers.as_ref().unwrap();
        assert!(headers.skip_external_clusters);
        assert_eq!(crate::type_name(&any), "io.istio.http.peer_metadata.Config");
    }

    #[test]
    fn a_typed_struct_of_an_unknown_type_is_met_by_the_name_it_gives() {
        let filter = crate::pb::envoy::config::listener::v3::Filter {
            name: "x".into(),
            config_type: Some(crate::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(
                typed_struct("type.googleapis.com/no.such.Type", "{}"),
            )),
        };
        let mut met = Vec::new();
        crate::visit(&filter, &mut |set| {
            met.push(format!("{} {}", set.message, set.field));
            true
        });
        assert!(met.contains(&"no.such.Type @type".to_owned()), "{met:?}");
    }
}
