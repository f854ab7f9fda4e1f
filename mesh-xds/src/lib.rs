//! Envoy v3 messages: typed, strictly read from YAML and JSON, and fetched from xDS servers ([`client`]).
//!
//! Every error names its place. Nothing here decides what a message means: that is the work of whoever
//! reads the typed message.

pub mod client;
mod decode;
mod encode;
pub mod istio;
mod node;
mod problem;
mod scalar;
mod schema;
mod table;
mod typed_struct;
mod visit;
mod wire;
mod wkt;

pub use envoy_types::pb;
pub use node::{Content, Node};
pub use problem::Problem;
pub use prost;
use prost::{Message, Name};
pub use visit::SetField;

/// Reads a tree as a message. All mistakes are reported.
pub fn from_node<T: Message + Name + Default>(node: &Node) -> Result<T, Vec<Problem>> {
    let name = T::full_name();
    let schema = schema::Message::named(&name)
        .ok_or_else(|| vec![Problem::new("", format!("{name} is not in the schema"))])?;
    let bytes = decode::encode(node, schema)?;
    T::decode(bytes.as_slice())
        .map_err(|error| vec![Problem::new("", format!("does not read as {name}: {error}"))])
}

/// Canonical JSON of a message: field names of the proto files, every `Any` expanded, private keys
/// redacted. `None` if its type is not in the schema.
pub fn to_json<T: Message + Name>(message: &T) -> Option<serde_json::Value> {
    let schema = schema::Message::named(&T::full_name())?;
    encode::message(&message.encode_to_vec(), schema, false).ok()
}

/// A message kept to be shown later: its bytes, which take a small part of the memory of the typed message.
#[derive(Debug, Clone)]
pub struct Stored {
    schema: schema::Message,
    bytes: Box<[u8]>,
}

impl Stored {
    /// `None` if the type of the message is not in the schema.
    pub fn new<T: Message + Name>(message: &T) -> Option<Self> {
        let schema = schema::Message::named(&T::full_name())?;
        Some(Self { schema, bytes: message.encode_to_vec().into() })
    }

    /// As [`to_json`].
    pub fn to_json(&self) -> serde_json::Value {
        encode::message(&self.bytes, self.schema, false).unwrap_or_default()
    }
}

/// The message in an `Any`, if its type is `T`. Errors say what the bytes lack. A `TypedStruct` counts as the
/// message that it describes.
pub fn unpack<T: Message + Name + Default>(
    any: &pb::google::protobuf::Any,
) -> Option<Result<T, prost::DecodeError>> {
    let name = any.type_url.rsplit('/').next()?;
    if name == T::full_name() {
        return Some(T::decode(any.value.as_slice()));
    }
    if !typed_struct::is(name) {
        return None;
    }
    match typed_struct::resolve(&any.value) {
        Ok((of, bytes)) => (of.name() == T::full_name()).then(|| T::decode(bytes.as_slice())),
        // What is wrong with it, the caller hears from [`visit`].
        Err(_) => None,
    }
}

/// Full name of the type in an `Any`; of a `TypedStruct`, the type that it describes.
pub fn type_name(any: &pb::google::protobuf::Any) -> String {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    match typed_struct::is(name).then(|| typed_struct::described(&any.value)) {
        Some(Ok(described)) => described,
        _ => name.to_owned(),
    }
}

/// Calls `f` for each field that is set in `message`, and descends where `f` answers true, into every `Any`
/// too. False if the type of the message is not in the schema.
pub fn visit<T: Message + Name>(message: &T, f: &mut dyn FnMut(SetField<'_>) -> bool) -> bool {
    let Some(schema) = schema::Message::named(&T::full_name()) else { return false };
    visit::visit(&message.encode_to_vec(), schema, f).is_ok()
}

/// Full name of the message that a field holds (of a map, that its values are); `None` if it holds none.
pub fn field_type(message: &str, field: &str) -> Option<&'static str> {
    let field = schema::Message::named(message)?.field(field)?;
    let schema::Kind::Message(of) = field.kind() else { return None };
    if !field.map() {
        return Some(of.name());
    }
    match of.field_number(2)?.kind() {
        schema::Kind::Message(value) => Some(value.name()),
        _ => None,
    }
}

/// Does a message type of this full name exist, and which fields has it?
pub fn fields_of(message: &str) -> Option<Vec<&'static str>> {
    Some(schema::Message::named(message)?.fields().map(|f| f.name()).collect())
}

/// What the proto files say of a field beside its type.
#[derive(Debug, Clone)]
pub struct Shape {
    /// A map, in which [`field_type`] is the type of the values.
    pub map: bool,
    /// Of an enum: the names of its values.
    pub values: Vec<&'static str>,
    /// The other members of its oneof.
    pub siblings: Vec<&'static str>,
}

/// `None` if the message has no such field.
pub fn shape_of(message: &str, field: &str) -> Option<Shape> {
    let message = schema::Message::named(message)?;
    let field = message.field(field)?;
    let values = match field.kind() {
        schema::Kind::Enum(of) => of.values().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    };
    let beside = |other: &schema::Field| {
        field.oneof().is_some() && other.oneof() == field.oneof() && other.number() != field.number()
    };
    let siblings = message.fields().filter(beside).map(schema::Field::name).collect();
    Some(Shape { map: field.map(), values, siblings })
}

/// As [`to_json`], of the encoded message of that type URL. `None` if the type is not in the schema or the bytes
/// are not such a message.
pub fn bytes_to_json(type_url: &str, bytes: &[u8]) -> Option<serde_json::Value> {
    let schema = schema::Message::named(type_url.rsplit('/').next()?)?;
    encode::message(bytes, schema, false).ok()
}
