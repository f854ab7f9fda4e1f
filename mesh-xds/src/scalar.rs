//! Scalars of proto3 JSON: numbers, booleans, text, bytes, enums.
//!
//! Unquoted YAML is read by the kind of its field, so that `version: 1.10` of a text field stays `1.10`.

use crate::node::{Content, Node};
use crate::schema::{Enum, Kind};
use crate::wire::{Value, put};

/// A scalar as it goes on the wire.
#[derive(Debug, PartialEq)]
pub(crate) enum Scalar {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Vec<u8>),
}

impl Scalar {
    pub(crate) fn put(&self, out: &mut Vec<u8>, number: u32) {
        let value = match self {
            Self::Varint(v) => Value::Varint(*v),
            Self::Fixed64(v) => Value::Fixed64(*v),
            Self::Fixed32(v) => Value::Fixed32(*v),
            Self::Bytes(v) => Value::Bytes(v),
        };
        put(out, number, value);
    }

    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Self::Varint(v) | Self::Fixed64(v) => *v == 0,
            Self::Fixed32(v) => *v == 0,
            Self::Bytes(v) => v.is_empty(),
        }
    }

    pub(crate) fn is_number(&self) -> bool {
        !matches!(self, Self::Bytes(_))
    }
}

/// Reads `node` as a scalar of this kind. The error is a message without a place.
pub(crate) fn encode(node: &Node, kind: Kind) -> Result<Scalar, String> {
    let wanted = |what: &str| format!("must be {what}, not {}", node.describe());
    let Content::Scalar(text, plain) = &node.content else { return Err(wanted(&describe(kind))) };
    let error = |()| wanted(&describe(kind));
    let signed =
        |min: i64, max: i64| integer(text).filter(|v| (i128::from(min)..=i128::from(max)).contains(v));
    let unsigned = |max: u64| integer(text).filter(|v| (0..=i128::from(max)).contains(v));
    let zigzag = |v: i128| (v as u64) << 1 ^ ((v as i64) >> 63) as u64;
    Ok(match kind {
        Kind::Double => Scalar::Fixed64(float(text).ok_or_else(|| error(()))?.to_bits()),
        Kind::Float => Scalar::Fixed32((float(text).ok_or_else(|| error(()))? as f32).to_bits()),
        Kind::Int32 => {
            Scalar::Varint(signed(i32::MIN.into(), i32::MAX.into()).ok_or_else(|| error(()))? as u64)
        }
        Kind::Int64 => Scalar::Varint(signed(i64::MIN, i64::MAX).ok_or_else(|| error(()))? as u64),
        Kind::Sint32 => {
            Scalar::Varint(zigzag(signed(i32::MIN.into(), i32::MAX.into()).ok_or_else(|| error(()))?))
        }
        Kind::Sint64 => Scalar::Varint(zigzag(signed(i64::MIN, i64::MAX).ok_or_else(|| error(()))?)),
        Kind::Uint32 => Scalar::Varint(unsigned(u32::MAX.into()).ok_or_else(|| error(()))? as u64),
        Kind::Uint64 => Scalar::Varint(unsigned(u64::MAX).ok_or_else(|| error(()))? as u64),
        Kind::Fixed32 => Scalar::Fixed32(unsigned(u32::MAX.into()).ok_or_else(|| error(()))? as u32),
        Kind::Fixed64 => Scalar::Fixed64(unsigned(u64::MAX).ok_or_else(|| error(()))? as u64),
        Kind::Sfixed32 => {
            Scalar::Fixed32(signed(i32::MIN.into(), i32::MAX.into()).ok_or_else(|| error(()))? as u32)
        }
        Kind::Sfixed64 => Scalar::Fixed64(signed(i64::MIN, i64::MAX).ok_or_else(|| error(()))? as u64),
        Kind::Bool => Scalar::Varint(u64::from(boolean(text, *plain).ok_or_else(|| error(()))?)),
        Kind::String => Scalar::Bytes(text.clone().into_bytes()),
        Kind::Bytes => Scalar::Bytes(base64(text).ok_or_else(|| error(()))?),
        Kind::Enum(of) => {
            let number = enum_number(text, of).ok_or_else(|| error(()))?;
            Scalar::Varint(i64::from(number) as u64)
        }
        Kind::Message(_) => unreachable!("messages are not scalars"),
    })
}

fn describe(kind: Kind) -> String {
    match kind {
        Kind::Double | Kind::Float => "a number".to_owned(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            format!("a whole number from {} to {}", i32::MIN, i32::MAX)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            format!("a whole number from {} to {}", i64::MIN, i64::MAX)
        }
        Kind::Uint32 | Kind::Fixed32 => format!("a whole number from 0 to {}", u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => format!("a whole number from 0 to {}", u64::MAX),
        Kind::Bool => "true or false".to_owned(),
        Kind::String => "text".to_owned(),
        Kind::Bytes => "base64 text".to_owned(),
        Kind::Enum(of) => {
            let names: Vec<_> = of.values().map(|(name, _)| name).collect();
            format!("one of {}", names.join(", "))
        }
        Kind::Message(message) => message.name().to_owned(),
    }
}

/// A whole number, also as `1e3` or `5.0`, as proto3 JSON allows.
fn integer(text: &str) -> Option<i128> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i128::from_str_radix(hex, 16).ok();
    }
    text.parse().ok().or_else(|| {
        let float: f64 = text.parse().ok()?;
        (float.is_finite() && float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i128)
    })
}

fn float(text: &str) -> Option<f64> {
    match text {
        "Infinity" | ".inf" => Some(f64::INFINITY),
        "-Infinity" | "-.inf" => Some(f64::NEG_INFINITY),
        "NaN" | ".nan" => Some(f64::NAN),
        // Rust reads more words than JSON has.
        _ if text.contains(|c: char| c.is_alphabetic() && c != 'e' && c != 'E') => None,
        _ => text.parse().ok(),
    }
}

/// Unquoted YAML also has `yes`, `on` and their kin, as Envoy's YAML reader does.
pub(crate) fn boolean(text: &str, plain: bool) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ if !plain => None,
        "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn enum_number(text: &str, of: Enum) -> Option<i32> {
    let by_name = of.values().find(|(name, _)| *name == text).map(|(_, number)| number);
    by_name.or_else(|| text.parse().ok().filter(|n| of.values().any(|(_, number)| number == *n)))
}

/// Standard or URL-safe base64, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // Six bits left over are half a byte too few.
    (held < 6 && bits == 0).then_some(out)
}

/// Standard base64 with padding.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let padded = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, padded[0], padded[1], padded[2]]);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
