//! Walks the fields that are set in a message, into every `Any`, with their full paths.
//!
//! Lets a reader of messages say which fields it honours without naming all the others in code.

use std::collections::HashMap;

use crate::problem::Path;
use crate::schema::{Kind, Message};
use crate::wire::{Malformed, Reader, Value};
use crate::{typed_struct, wkt};

/// One field that is set.
#[derive(Debug, Clone, Copy)]
pub struct SetField<'a> {
    /// Full path, such as `filter_chains[0].filters[0].name`.
    pub path: &'a str,
    /// Full name of the message that has the field; of an `Any`, the type inside.
    pub message: &'a str,
    /// Name of the field; `@type` when `message` was met inside an `Any`, before its fields.
    pub field: &'a str,
    /// `false`, `{}` or empty: given, but as good as not given.
    pub empty: bool,
}

/// Calls `f` for each field that is set; descends into it if `f` says so.
pub(crate) fn visit(
    bytes: &[u8],
    message: Message,
    f: &mut dyn FnMut(SetField<'_>) -> bool,
) -> Result<(), Malformed> {
    Walk { path: Path::default(), f }.message(bytes, message)
}

struct Walk<'f> {
    path: Path,
    f: &'f mut dyn FnMut(SetField<'_>) -> bool,
}

impl Walk<'_> {
    fn message(&mut self, bytes: &[u8], message: Message) -> Result<(), Malformed> {
        if message.name() == "google.protobuf.Any" {
            return self.any(bytes);
        }
        if wkt::is_special(message.name()) {
            return Ok(());
        }
        let mut counts: HashMap<u32, usize> = HashMap::new();
        let mut reader = Reader(bytes);
        while let Some((number, value)) = reader.next()? {
            let Some(field) = message.field_number(number) else { continue };
            let before = self.path.field(field.name());
            if field.repeated() && !field.map() {
                let index = counts.entry(number).or_default();
                self.path.index(*index);
                *index += 1;
            }
            let empty = matches!(value, Value::Bytes(b"") | Value::Varint(0));
            let set =
                SetField { path: self.path.as_str(), message: message.name(), field: field.name(), empty };
            if (self.f)(set)
                && let (Kind::Message(of), Value::Bytes(inner)) = (field.kind(), value)
            {
                if field.map() { self.map_entry(inner, of)? } else { self.message(inner, of)? }
            }
            self.path.back(before);
        }
        Ok(())
    }

    fn map_entry(&mut self, bytes: &[u8], entry: Message) -> Result<(), Malformed> {
        let (mut key, mut value) = ("", None);
        let mut reader = Reader(bytes);
        while let Some((number, part)) = reader.next()? {
            match (number, part) {
                (1, Value::Bytes(text)) => key = std::str::from_utf8(text).map_err(|_| Malformed)?,
                (2, Value::Bytes(inner)) => value = Some(inner),
                _ => {}
            }
        }
        let kind = entry.field_number(2).map(|f| f.kind());
        if let (Some(inner), Some(Kind::Message(of))) = (value, kind) {
            let before = self.path.field(key);
            self.message(inner, of)?;
            self.path.back(before);
        }
        Ok(())
    }

    fn any(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (mut url, mut inner) = ("", &[][..]);
        let mut reader = Reader(bytes);
        while let Some((number, part)) = reader.next()? {
            match (number, part) {
                (1, Value::Bytes(text)) => url = std::str::from_utf8(text).map_err(|_| Malformed)?,
                (2, Value::Bytes(value)) => inner = value,
                _ => {}
            }
        }
        let name = url.rsplit('/').next().unwrap_or_default();
        if typed_struct::is(name) {
            return self.typed_struct(inner);
        }
        let set = SetField { path: self.path.as_str(), message: name, field: "@type", empty: url.is_empty() };
        if (self.f)(set)
            && let Some(of) = Message::named(name)
        {
            self.message(inner, of)?;
        }
        Ok(())
    }

    /// As the message that it describes; one that describes none is met by the name it gives.
    fn typed_struct(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        match typed_struct::resolve(bytes) {
            Ok((of, inner)) => {
                let path = self.path.as_str();
                if (self.f)(SetField { path, message: of.name(), field: "@type", empty: false }) {
                    self.message(&inner, of)?;
                }
            }
            Err(typed_struct::Unresolved { name, .. }) => {
                let path = self.path.as_str();
                (self.f)(SetField { path, message: &name, field: "@type", empty: false });
            }
        }
        Ok(())
    }
}
