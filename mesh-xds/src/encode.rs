//! Protobuf bytes to canonical JSON, with the field names of the proto files and every `Any` expanded: what
//! Envoy's `/config_dump` shows. Private keys and passwords are shown as `[redacted]`, as there.

use serde_json::{Map, Value as Json};

use crate::schema::{Field, Kind, Message};
use crate::wire::{Malformed, Reader, Value};
use crate::{scalar as text, typed_struct, wkt};

pub(crate) fn message(bytes: &[u8], message: Message, redact: bool) -> Result<Json, Malformed> {
    match message.name() {
        "google.protobuf.Any" => return any(bytes, redact),
        name if wkt::is_special(name) => return wkt::to_json(bytes, name),
        _ => {}
    }
    let mut out = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, value)) = reader.next()? {
        // A field of a newer server: it was not read either.
        let Some(field) = message.field_number(number) else { continue };
        if field.map() {
            let entries = out.entry(field.name()).or_insert_with(|| Json::Object(Map::new()));
            if let (Json::Object(entries), Value::Bytes(entry)) = (entries, value) {
                let (key, value) = map_entry(entry, field, redact)?;
                entries.insert(key, value);
            }
        } else if field.repeated() {
            let list = out.entry(field.name()).or_insert_with(|| Json::Array(Vec::new()));
            if let Json::Array(list) = list {
                repeated(value, field, redact, list)?;
            }
        } else {
            out.insert(field.name().to_owned(), one(value, field, redact)?);
        }
    }
    Ok(Json::Object(out))
}

fn one(value: Value<'_>, field: Field, redact: bool) -> Result<Json, Malformed> {
    let redact = redact || field.sensitive();
    match (field.kind(), value) {
        (Kind::Message(of), Value::Bytes(bytes)) => message(bytes, of, redact),
        (Kind::String, _) if redact => Ok(Json::from("[redacted]")),
        // Base64 of `[redacted]`.
        (Kind::Bytes, _) if redact => Ok(Json::from("W3JlZGFjdGVkXQ==")),
        (kind, value) => scalar(value, kind),
    }
}

fn repeated(value: Value<'_>, field: Field, redact: bool, list: &mut Vec<Json>) -> Result<(), Malformed> {
    let kind = field.kind();
    let packed = !matches!(kind, Kind::Message(_) | Kind::String | Kind::Bytes);
    let Value::Bytes(bytes) = value else {
        list.push(one(value, field, redact)?);
        return Ok(());
    };
    if !packed {
        list.push(one(value, field, redact)?);
        return Ok(());
    }
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let value = match kind {
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                Value::Fixed64(u64::from_le_bytes(reader.array()?))
            }
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                Value::Fixed32(u32::from_le_bytes(reader.array()?))
            }
            _ => Value::Varint(reader.varint()?),
        };
        list.push(scalar(value, kind)?);
    }
    Ok(())
}

pub(crate) fn scalar(value: Value<'_>, kind: Kind) -> Result<Json, Malformed> {
    let unzigzag = |v: u64| (v >> 1) as i64 ^ -((v & 1) as i64);
    Ok(match (kind, value) {
        (Kind::Double, Value::Fixed64(v)) => wkt::number(f64::from_bits(v)),
        (Kind::Float, Value::Fixed32(v)) => wkt::number(f64::from(f32::from_bits(v))),
        (Kind::Int32, Value::Varint(v)) => Json::from(v as i32),
        (Kind::Sint32, Value::Varint(v)) => Json::from(unzigzag(v)),
        (Kind::Uint32, Value::Varint(v)) => Json::from(v),
        (Kind::Fixed32, Value::Fixed32(v)) => Json::from(v),
        (Kind::Sfixed32, Value::Fixed32(v)) => Json::from(v as i32),
        // 64-bit numbers are text in proto3 JSON.
        (Kind::Int64, Value::Varint(v)) => Json::from((v as i64).to_string()),
        (Kind::Sint64, Value::Varint(v)) => Json::from(unzigzag(v).to_string()),
        (Kind::Uint64, Value::Varint(v)) => Json::from(v.to_string()),
        (Kind::Fixed64, Value::Fixed64(v)) => Json::from(v.to_string()),
        (Kind::Sfixed64, Value::Fixed64(v)) => Json::from((v as i64).to_string()),
        (Kind::Bool, Value::Varint(v)) => Json::from(v != 0),
        (Kind::String, Value::Bytes(v)) => Json::from(std::str::from_utf8(v).map_err(|_| Malformed)?),
        (Kind::Bytes, Value::Bytes(v)) => Json::from(text::to_base64(v)),
        (Kind::Enum(of), Value::Varint(v)) => {
            let number = v as i32;
            let name = of.values().find(|(_, n)| *n == number).map(|(name, _)| name);
            name.map_or_else(|| Json::from(number), Json::from)
        }
        _ => return Err(Malformed),
    })
}

fn map_entry(entry: &[u8], field: Field, redact: bool) -> Result<(String, Json), Malformed> {
    let Kind::Message(of) = field.kind() else { return Err(Malformed) };
    let Json::Object(mut parts) = message(entry, of, redact)? else { return Err(Malformed) };
    let key = match parts.remove("key") {
        Some(Json::String(key)) => key,
        Some(key) => key.to_string(),
        None => String::new(),
    };
    Ok((key, parts.remove("value").unwrap_or(Json::Null)))
}

fn any(bytes: &[u8], redact: bool) -> Result<Json, Malformed> {
    let (mut url, mut value) = (String::new(), &[][..]);
    let mut reader = Reader(bytes);
    while let Some((number, part)) = reader.next()? {
        let Value::Bytes(part) = part else { return Err(Malformed) };
        match number {
            1 => url = String::from_utf8_lossy(part).into_owned(),
            _ => value = part,
        }
    }
    let mut out = Map::new();
    if url.is_empty() {
        return Ok(Json::Object(out));
    }
    let name = url.rsplit('/').next().unwrap_or_default();
    match Message::named(name) {
        Some(of) if typed_struct::is(name) => {
            if let Json::Object(fields) = message(value, of, redact)? {
                out = fields;
            }
            // Only as the message that it describes is it known what is a secret.
            if let Ok((of, described)) = typed_struct::resolve(value) {
                out.insert("value".to_owned(), message(&described, of, redact)?);
            }
        }
        Some(of) if wkt::is_special(name) => {
            out.insert("value".to_owned(), message(value, of, redact)?);
        }
        Some(of) => {
            if let Json::Object(fields) = message(value, of, redact)? {
                out = fields;
            }
        }
        // A type that this build does not know: its bytes.
        None => {
            out.insert("value".to_owned(), Json::from(text::to_base64(value)));
        }
    }
    out.insert("@type".to_owned(), Json::from(url));
    Ok(Json::Object(out))
}
