//! Trees to protobuf bytes, by the rules of proto3 JSON, strictly: a field that does not exist is an error.
//!
//! All errors of a tree are found in one pass. What the messages mean is not looked at, except the
//! constraints that Envoy's protos state (`validate.rules`: required, not empty, bounds).

use crate::node::{Content, Node};
use crate::problem::{Path, Problem};
use crate::schema::{Field, Kind, Message};
use crate::wire::{Value, put};
use crate::{scalar, wkt};

/// Encodes `node` as a `message`.
pub(crate) fn encode(node: &Node, message: Message) -> Result<Vec<u8>, Vec<Problem>> {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    encoder.message(node, message, &mut out);
    if encoder.problems.is_empty() { Ok(out) } else { Err(encoder.problems) }
}

#[derive(Default)]
pub(crate) struct Encoder {
    path: Path,
    problems: Vec<Problem>,
}

impl Encoder {
    pub(crate) fn problem(&mut self, node: &Node, message: impl Into<String>) {
        let path = self.path.as_str().to_owned();
        self.problems.push(Problem { path, line: node.line, message: message.into() });
    }

    pub(crate) fn message(&mut self, node: &Node, message: Message, out: &mut Vec<u8>) {
        match message.name() {
            "google.protobuf.Any" => self.any(node, out),
            name if wkt::is_special(name) => {
                if let Err(problem) = wkt::encode(node, name, out) {
                    self.problem(node, problem);
                }
            }
            _ => match &node.content {
                Content::Map(entries) => self.fields(node, entries, message, out),
                _ => {
                    self.problem(
                        node,
                        format!("must be a map ({}), not {}", message.name(), node.describe()),
                    );
                }
            },
        }
    }

    fn fields(&mut self, node: &Node, entries: &[(String, Node)], message: Message, out: &mut Vec<u8>) {
        let mut seen: Vec<Field> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let before = self.path.field(key);
            match message.field(key) {
                None => self.problem(value, unknown_field(key, message)),
                Some(field) if seen.iter().any(|f| f.number() == field.number()) => {
                    self.problem(value, "is given twice, in two spellings; keep one");
                }
                Some(_) if value.content == Content::Null => {}
                Some(field) => {
                    let same = |f: &&Field| f.oneof().is_some() && f.oneof() == field.oneof();
                    if let Some(other) = seen.iter().find(same) {
                        self.problem(value, format!("cannot be given beside {}; keep one", other.name()));
                    }
                    seen.push(field);
                    self.field(value, field, out);
                }
            }
            self.path.back(before);
        }
        // Rules about a member of a oneof, or about emptiness of an optional part, hold only where it is given.
        let needed = |f: &Field| f.oneof().is_none() && (f.required() || (f.not_empty() && !f.presence()));
        for field in message.fields().filter(needed) {
            if !seen.iter().any(|f| f.number() == field.number()) {
                let before = self.path.field(field.name());
                self.problem(node, "is required");
                self.path.back(before);
            }
        }
        for (index, (name, required)) in message.oneofs().enumerate() {
            if required && !seen.iter().any(|f| f.oneof() == Some(index)) {
                let of: Vec<_> =
                    message.fields().filter(|f| f.oneof() == Some(index)).map(Field::name).collect();
                self.problem(node, format!("needs one of {} ({name})", of.join(", ")));
            }
        }
    }

    fn field(&mut self, node: &Node, field: Field, out: &mut Vec<u8>) {
        match (&node.content, field.kind()) {
            (Content::Map(entries), Kind::Message(entry)) if field.map() => {
                for (key, value) in entries {
                    let before = self.path.field(key);
                    self.map_entry(key, value, entry, field.number(), out);
                    self.path.back(before);
                }
            }
            _ if field.map() => self.problem(node, format!("must be a map, not {}", node.describe())),
            (Content::List(items), _) if field.repeated() => {
                if items.is_empty() && field.not_empty() {
                    self.problem(node, "must not be empty");
                }
                for (index, item) in items.iter().enumerate() {
                    let before = self.path.index(index);
                    self.one(item, field, out);
                    self.path.back(before);
                }
            }
            // As Envoy's reader of JSON: one message where a list of them belongs is a list of one.
            (Content::Map(_), Kind::Message(_)) if field.repeated() => {
                let before = self.path.index(0);
                self.one(node, field, out);
                self.path.back(before);
            }
            _ if field.repeated() => self.problem(node, format!("must be a list, not {}", node.describe())),
            _ => self.one(node, field, out),
        }
    }

    /// One value of a field, or one entry of a repeated one.
    fn one(&mut self, node: &Node, field: Field, out: &mut Vec<u8>) {
        if let Kind::Message(message) = field.kind() {
            let mut inner = Vec::new();
            self.message(node, message, &mut inner);
            self.check(node, field, None);
            put(out, field.number(), Value::Bytes(&inner));
            return;
        }
        match scalar::encode(node, field.kind()) {
            Ok(scalar) => {
                self.check(node, field, Some(&scalar));
                // Zero values without presence are what an absent field means.
                if field.repeated() || field.presence() || !scalar.is_zero() {
                    scalar.put(out, field.number());
                }
            }
            Err(problem) => self.problem(node, problem),
        }
    }

    /// The constraints that the proto files state.
    fn check(&mut self, node: &Node, field: Field, scalar: Option<&scalar::Scalar>) {
        let Content::Scalar(text, _) = &node.content else { return };
        if field.not_empty() && !field.repeated() && text.is_empty() {
            self.problem(node, "must not be empty");
        }
        let number: Option<u64> = text.parse().ok();
        if scalar.is_none_or(|s| s.is_number())
            && let Some(number) = number
        {
            if let Some(lower) = field.lower().filter(|&l| number < u64::from(l)) {
                self.problem(node, format!("must be at least {lower}, not {number}"));
            }
            if let Some(upper) = field.upper().filter(|&u| number > u64::from(u)) {
                self.problem(node, format!("must be at most {upper}, not {number}"));
            }
        }
        if field.positive_duration() && wkt::duration(text).is_ok_and(|(s, n)| s < 0 || (s == 0 && n <= 0)) {
            self.problem(node, format!("must be longer than 0s, not {text}"));
        }
    }

    fn map_entry(&mut self, key: &str, value: &Node, entry: Message, number: u32, out: &mut Vec<u8>) {
        let (Some(key_field), Some(value_field)) = (entry.field_number(1), entry.field_number(2)) else {
            unreachable!("a map entry has a key and a value")
        };
        let mut inner = Vec::new();
        let key_node = Node { line: value.line, content: Content::Scalar(key.to_owned(), true) };
        match scalar::encode(&key_node, key_field.kind()) {
            Ok(key) => key.put(&mut inner, 1),
            Err(problem) => self.problem(value, format!("key {problem}")),
        }
        self.one(value, value_field, &mut inner);
        put(out, number, Value::Bytes(&inner));
    }

    /// `Any`: the fields beside `@type` are those of the named message.
    fn any(&mut self, node: &Node, out: &mut Vec<u8>) {
        let Content::Map(entries) = &node.content else {
            return self.problem(node, format!("must be a map with an @type, not {}", node.describe()));
        };
        if entries.is_empty() {
            return;
        }
        let Some(Content::Scalar(url, _)) = node.get("@type").map(|n| &n.content) else {
            return self.problem(node, "needs an @type, such as type.googleapis.com/PACKAGE.MESSAGE");
        };
        let name = url.rsplit('/').next().unwrap_or_default();
        if crate::typed_struct::is(name) {
            return self.typed_struct(node, out);
        }
        let Some(message) = Message::named(name) else {
            return self.problem(node, format!("@type {url} is not known; check its spelling"));
        };
        let rest: Vec<_> = entries.iter().filter(|(k, _)| k != "@type").cloned().collect();
        let content = if wkt::is_special(name) {
            // Well-known types stand under `value`.
            node.get("value").map_or(Content::Map(Vec::new()), |value| value.content.clone())
        } else {
            Content::Map(rest)
        };
        self.pack(&Node { line: node.line, content }, message, out);
    }

    /// `TypedStruct`: a message by name, its fields in a free-form struct.
    fn typed_struct(&mut self, node: &Node, out: &mut Vec<u8>) {
        for (key, value) in
            node.entries().filter(|(k, _)| !["@type", "type_url", "typeUrl", "value"].contains(k))
        {
            let before = self.path.field(key);
            self.problem(value, "no such field in TypedStruct, which has type_url and value");
            self.path.back(before);
        }
        let url = node.get("type_url").or_else(|| node.get("typeUrl"));
        let Some(Content::Scalar(url, _)) = url.map(|n| &n.content) else {
            return self.problem(node, "a TypedStruct needs a type_url");
        };
        let name = url.rsplit('/').next().unwrap_or_default();
        let Some(message) = Message::named(name) else {
            return self.problem(node, format!("type_url {url} is not known; check its spelling"));
        };
        let empty = Node { line: node.line, content: Content::Map(Vec::new()) };
        let value = node.get("value").unwrap_or(&empty);
        let before = self.path.field("value");
        // Checked as what it describes, kept as what it is.
        self.message(value, message, &mut Vec::new());
        self.path.back(before);
        let (mut described, mut inner) = (Vec::new(), Vec::new());
        if let Err(problem) = wkt::encode(value, "google.protobuf.Struct", &mut described) {
            return self.problem(value, problem);
        }
        put(&mut inner, 1, Value::Bytes(url.as_bytes()));
        put(&mut inner, 2, Value::Bytes(&described));
        let Some(Content::Scalar(of, _)) = node.get("@type").map(|n| &n.content) else { return };
        put(out, 1, Value::Bytes(of.as_bytes()));
        put(out, 2, Value::Bytes(&inner));
    }

    fn pack(&mut self, node: &Node, message: Message, out: &mut Vec<u8>) {
        let mut inner = Vec::new();
        self.message(node, message, &mut inner);
        put(out, 1, Value::Bytes(format!("type.googleapis.com/{}", message.name()).as_bytes()));
        put(out, 2, Value::Bytes(&inner));
    }
}

fn unknown_field(key: &str, message: Message) -> String {
    let near = message.fields().map(Field::name).min_by_key(|name| distance(key, name));
    let hint = match near {
        Some(name) if distance(key, name) <= 1 + key.len() / 4 => format!("; did you mean {name}?"),
        _ => "; remove it or check its spelling".to_owned(),
    };
    format!("no such field in {}{hint}", message.name())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
