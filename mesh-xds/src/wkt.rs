//! Well-known types whose JSON is not a map of their fields: wrappers, `Duration`, `Struct` and so on.

use serde_json::Value as Json;

use crate::node::{Content, Node};
use crate::scalar;
use crate::schema::{Kind, Message};
use crate::wire::{Malformed, Reader, Value, put};

const PREFIX: &str = "google.protobuf.";

/// Has this message (full name) a JSON form of its own? `Any` is not counted.
pub(crate) fn is_special(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|name| {
        name.ends_with("Value") || matches!(name, "Duration" | "Timestamp" | "Struct" | "FieldMask" | "Empty")
    })
}

/// Encodes `node` as the special message `name`. The error is a message without a place.
pub(crate) fn encode(node: &Node, name: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let wanted = |what: &str| format!("must be {what}, not {}", node.describe());
    match name.strip_prefix(PREFIX).unwrap_or(name) {
        "Duration" => {
            let Content::Scalar(text, _) = &node.content else {
                return Err(wanted("a duration such as 1.5s"));
            };
            let (seconds, nanos) = duration(text).map_err(|()| wanted("a duration such as 1.5s"))?;
            seconds_and_nanos(seconds, nanos, out);
        }
        "Timestamp" => {
            let text = match &node.content {
                Content::Scalar(text, _) => text,
                _ => return Err(wanted("a time such as 2025-01-31T00:00:00Z")),
            };
            let (seconds, nanos) =
                timestamp(text).ok_or_else(|| wanted("a time such as 2025-01-31T00:00:00Z"))?;
            seconds_and_nanos(seconds, nanos, out);
        }
        "Struct" => match &node.content {
            Content::Map(entries) => structure(entries, out),
            _ => return Err(wanted("a map")),
        },
        "ListValue" => match &node.content {
            Content::List(items) => list(items, out),
            _ => return Err(wanted("a list")),
        },
        "Value" => value(node, out),
        "FieldMask" => match &node.content {
            Content::Scalar(text, _) => {
                text.split(',').for_each(|path| put(out, 1, Value::Bytes(path.as_bytes())));
            }
            _ => return Err(wanted("field paths separated by commas")),
        },
        "Empty" => match &node.content {
            Content::Map(entries) if entries.is_empty() => {}
            _ => return Err(wanted("an empty map")),
        },
        _ => {
            let field = Message::named(name).and_then(|m| m.field_number(1));
            let kind = field.ok_or_else(|| format!("{name} is not a wrapper"))?.kind();
            let scalar = scalar::encode(node, kind)?;
            if !scalar.is_zero() {
                scalar.put(out, 1);
            }
        }
    }
    Ok(())
}

fn seconds_and_nanos(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        put(out, 1, Value::Varint(seconds as u64));
    }
    if nanos != 0 {
        put(out, 2, Value::Varint(i64::from(nanos) as u64));
    }
}

/// Seconds and nanoseconds of text such as `1.5s`; both have the sign of the whole.
pub(crate) fn duration(text: &str) -> Result<(i64, i32), ()> {
    let number = text.strip_suffix('s').ok_or(())?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(());
    }
    let seconds: i64 = whole.parse().map_err(|_| ())?;
    // The range of google.protobuf.Duration: 10,000 years.
    if seconds > 315_576_000_000 {
        return Err(());
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().map_err(|_| ())?;
    Ok(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// RFC 3339 in UTC (`Z`).
fn timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let numbers = |s: &str, by: char| -> Option<[i64; 3]> {
        s.split(by).map(|n| n.parse().ok()).collect::<Option<Vec<i64>>>()?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    // Days since 1970 of a Gregorian date, with March as the first month of a year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day;
    let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(((days - 719_469) * 86_400 + hour * 3600 + minute * 60 + second, nanos))
}

fn structure(entries: &[(String, Node)], out: &mut Vec<u8>) {
    for (key, item) in entries {
        let mut inner = Vec::new();
        value(item, &mut inner);
        let mut entry = Vec::new();
        put(&mut entry, 1, Value::Bytes(key.as_bytes()));
        put(&mut entry, 2, Value::Bytes(&inner));
        put(out, 1, Value::Bytes(&entry));
    }
}

fn list(items: &[Node], out: &mut Vec<u8>) {
    for item in items {
        let mut inner = Vec::new();
        value(item, &mut inner);
        put(out, 1, Value::Bytes(&inner));
    }
}

/// `google.protobuf.Value`: here unquoted YAML means what YAML says.
fn value(node: &Node, out: &mut Vec<u8>) {
    let mut inner = Vec::new();
    match &node.content {
        Content::Null => put(out, 1, Value::Varint(0)),
        Content::Scalar(text, plain) => {
            let number = text.parse::<f64>().ok().filter(|_| *plain && !text.contains(['n', 'N', 'i', 'I']));
            match (number, scalar::boolean(text, *plain).filter(|_| *plain)) {
                (Some(number), _) => put(out, 2, Value::Fixed64(number.to_bits())),
                (None, Some(boolean)) => put(out, 4, Value::Varint(u64::from(boolean))),
                (None, None) => put(out, 3, Value::Bytes(text.as_bytes())),
            }
        }
        Content::Map(entries) => {
            structure(entries, &mut inner);
            put(out, 5, Value::Bytes(&inner));
        }
        Content::List(items) => {
            list(items, &mut inner);
            put(out, 6, Value::Bytes(&inner));
        }
    }
}

/// The JSON form of the special message `name`.
pub(crate) fn to_json(bytes: &[u8], name: &str) -> Result<Json, Malformed> {
    let mut reader = Reader(bytes);
    let mut fields = Vec::new();
    while let Some(field) = reader.next()? {
        fields.push(field);
    }
    let varint = |number| {
        let found = fields.iter().rev().find(|(n, _)| *n == number);
        found.and_then(|(_, v)| if let Value::Varint(v) = v { Some(*v) } else { None }).unwrap_or(0)
    };
    let seconds = varint(1) as i64;
    let nanos = varint(2) as i64;
    Ok(match name.strip_prefix(PREFIX).unwrap_or(name) {
        "Duration" => {
            let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
            Json::from(format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos)))
        }
        "Timestamp" => Json::from(date(seconds, nanos)),
        "Struct" => {
            let mut map = serde_json::Map::new();
            for (_, entry) in &fields {
                let Value::Bytes(entry) = entry else { return Err(Malformed) };
                let (key, value) = struct_entry(entry)?;
                map.insert(key, value);
            }
            Json::Object(map)
        }
        "ListValue" => {
            let items = fields.iter().map(|(_, item)| match item {
                Value::Bytes(item) => to_json(item, "google.protobuf.Value"),
                _ => Err(Malformed),
            });
            Json::Array(items.collect::<Result<_, _>>()?)
        }
        "Value" => match fields.last() {
            Some((2, Value::Fixed64(bits))) => number(f64::from_bits(*bits)),
            Some((3, Value::Bytes(text))) => Json::from(String::from_utf8_lossy(text)),
            Some((4, Value::Varint(v))) => Json::from(*v != 0),
            Some((5, Value::Bytes(inner))) => to_json(inner, "google.protobuf.Struct")?,
            Some((6, Value::Bytes(inner))) => to_json(inner, "google.protobuf.ListValue")?,
            _ => Json::Null,
        },
        "FieldMask" => {
            let paths = fields.iter().filter_map(|(_, v)| match v {
                Value::Bytes(path) => Some(String::from_utf8_lossy(path)),
                _ => None,
            });
            Json::from(paths.collect::<Vec<_>>().join(","))
        }
        "Empty" => Json::Object(serde_json::Map::new()),
        _ => {
            let field = Message::named(name).and_then(|m| m.field_number(1)).ok_or(Malformed)?;
            match fields.last() {
                Some((_, value)) => crate::encode::scalar(*value, field.kind())?,
                None => zero(field.kind()),
            }
        }
    })
}

fn struct_entry(entry: &[u8]) -> Result<(String, Json), Malformed> {
    let (mut key, mut value) = (String::new(), Json::Null);
    let mut reader = Reader(entry);
    while let Some((number, part)) = reader.next()? {
        let Value::Bytes(part) = part else { return Err(Malformed) };
        match number {
            1 => key = String::from_utf8_lossy(part).into_owned(),
            _ => value = to_json(part, "google.protobuf.Value")?,
        }
    }
    Ok((key, value))
}

fn zero(kind: Kind) -> Json {
    match kind {
        Kind::Bool => Json::from(false),
        Kind::String | Kind::Bytes => Json::from(""),
        Kind::Int64 | Kind::Uint64 => Json::from("0"),
        _ => Json::from(0),
    }
}

/// A number as JSON; what JSON lacks is text.
pub(crate) fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Json::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or_else(
        || {
            let name = if value.is_nan() {
                "NaN"
            } else if value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            };
            Json::from(name)
        },
        Json::Number,
    )
}

fn fraction(nanos: i64) -> String {
    let nanos = nanos.unsigned_abs();
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1000 == 0 => format!(".{:06}", n / 1000),
        n => format!(".{n:09}"),
    }
}

/// RFC 3339 in UTC.
fn date(seconds: i64, nanos: i64) -> String {
    let (days, time) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{}Z", fraction(nanos))
}
