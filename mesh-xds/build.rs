//! Compiles the descriptor set of the `envoy-types` package into the schema table (see `src/table.rs`).
//!
//! The set itself is not embedded: a reflection pool built from it costs tens of MiB of heap, the table
//! costs only the pages that are read.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "src/istio/descriptors.rs"]
mod istio;
#[path = "src/table.rs"]
#[allow(dead_code)]
mod table;
#[path = "src/wire.rs"]
#[allow(dead_code)]
mod wire;

use table::*;
use wire::{Reader, Value};

/// Extension numbers: `validate.rules` and `validate.required`, `udpa.annotations.sensitive`.
const VALIDATE: u32 = 1071;
const SENSITIVE_OPTION: u32 = 76_569_463;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/table.rs");
    println!("cargo::rerun-if-changed=src/wire.rs");
    println!("cargo::rerun-if-changed=src/istio/descriptors.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let set = descriptor_set();
    println!("cargo::rerun-if-changed={}", set.display());
    let bytes = fs::read(&set).unwrap_or_else(|e| panic!("reading {}: {e}", set.display()));
    let mut schema = Schema::default();
    for file in children(&bytes, 1) {
        schema.add_file(file);
    }
    istio::add(&mut schema);
    let (words, text) = schema.encode();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    fs::write(out.join("schema.words"), words).expect("writing the schema table");
    fs::write(out.join("schema.text"), text).expect("writing the schema table");
}

/// The descriptor set lies beside the generated code of the package, which cargo knows where to find.
fn descriptor_set() -> PathBuf {
    // Without network first: it is all there unless only a part of the workspace was ever fetched.
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[])).unwrap_or_else(|e| panic!("{e}"));
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|p| p["name"] == "envoy-types"))
        .and_then(|package| package["manifest_path"].as_str())
        .expect("envoy-types is a dependency");
    Path::new(manifest).with_file_name("src/generated/types.bin")
}

fn metadata(network: &[&str]) -> Result<serde_json::Value, String> {
    let set = |name| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let output = Command::new(set("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
        .arg(set("TARGET"))
        .arg("--manifest-path")
        .arg(Path::new(&set("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .args(network)
        .output()
        .map_err(|e| format!("running cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("output of cargo metadata: {e}"))
}

#[derive(Default)]
struct Schema {
    /// By full name, so that the table is sorted.
    messages: BTreeMap<String, Message>,
    enums: BTreeMap<String, Vec<(String, i32)>>,
}

#[derive(Default)]
struct Message {
    map_entry: bool,
    fields: Vec<Field>,
    oneofs: Vec<(String, bool)>,
}

#[derive(Default)]
struct Field {
    name: String,
    json_name: String,
    number: u32,
    flags: u32,
    type_name: String,
    oneof: Option<u32>,
    lower: u32,
    upper: u32,
}

impl Schema {
    fn add_file(&mut self, file: &[u8]) {
        let package = text(file, 2);
        // proto2 files hold only options and annotations, which no configuration contains.
        if text(file, 12) != "proto3" {
            return;
        }
        for message in children(file, 4) {
            self.add_message(&package, message);
        }
        for descriptor in children(file, 5) {
            self.add_enum(&package, descriptor);
        }
    }

    fn add_message(&mut self, scope: &str, descriptor: &[u8]) {
        let name = format!("{scope}.{}", text(descriptor, 1));
        for nested in children(descriptor, 3) {
            self.add_message(&name, nested);
        }
        for nested in children(descriptor, 4) {
            self.add_enum(&name, nested);
        }
        let options = children(descriptor, 7).next().unwrap_or_default();
        let oneofs = children(descriptor, 8).map(|oneof| {
            let options = children(oneof, 2).next().unwrap_or_default();
            (text(oneof, 1), varint(options, VALIDATE) == Some(1))
        });
        let message = Message {
            map_entry: varint(options, 7) == Some(1),
            fields: children(descriptor, 2).map(field).collect(),
            oneofs: oneofs.collect(),
        };
        self.messages.insert(name, message);
    }

    fn add_enum(&mut self, scope: &str, descriptor: &[u8]) {
        let values = children(descriptor, 2).map(|v| (text(v, 1), varint(v, 2).unwrap_or(0) as i32));
        self.enums.insert(format!("{scope}.{}", text(descriptor, 1)), values.collect());
    }

    fn encode(&self) -> (Vec<u32>, String) {
        let index = |names: Vec<&String>| -> HashMap<String, u32> {
            names.into_iter().enumerate().map(|(i, n)| (n.clone(), i as u32)).collect()
        };
        let message_index = index(self.messages.keys().collect());
        let enum_index = index(self.enums.keys().collect());
        let mut strings = Strings::default();
        let [mut messages, mut fields, mut enums, mut values, mut oneofs] = [const { Vec::new() }; 5];
        for (name, message) in &self.messages {
            messages.extend(strings.add(name));
            messages.extend([(fields.len() / FIELD_WORDS) as u32, message.fields.len() as u32]);
            messages.extend([(oneofs.len() / ONEOF_WORDS) as u32, message.oneofs.len() as u32]);
            for (name, required) in &message.oneofs {
                oneofs.extend(strings.add(name));
                oneofs.push(u32::from(*required));
            }
            for field in &message.fields {
                let target = field.type_name.trim_start_matches('.');
                let type_index = message_index.get(target).or_else(|| enum_index.get(target)).copied();
                let is_map = self.messages.get(target).is_some_and(|m| m.map_entry);
                fields.extend(strings.add(&field.name));
                fields.extend(strings.add(&field.json_name));
                fields.extend([field.number, field.flags | if is_map { MAP } else { 0 }]);
                fields.extend([type_index.unwrap_or(NONE), field.oneof.unwrap_or(NONE)]);
                fields.extend([field.lower, field.upper]);
            }
        }
        for (name, members) in &self.enums {
            enums.extend(strings.add(name));
            enums.extend([(values.len() / VALUE_WORDS) as u32, members.len() as u32]);
            for (name, number) in members {
                values.extend(strings.add(name));
                values.push(*number as u32);
            }
        }
        let mut words = vec![
            self.messages.len() as u32,
            (fields.len() / FIELD_WORDS) as u32,
            self.enums.len() as u32,
            (values.len() / VALUE_WORDS) as u32,
            (oneofs.len() / ONEOF_WORDS) as u32,
        ];
        words.extend([messages, fields, enums, values, oneofs].concat());
        (words, strings.text)
    }
}

/// Text without repetition.
#[derive(Default)]
struct Strings {
    text: String,
    known: HashMap<String, u32>,
}

impl Strings {
    fn add(&mut self, s: &str) -> [u32; 2] {
        let offset = *self.known.entry(s.to_owned()).or_insert_with(|| {
            let offset = self.text.len() as u32;
            self.text.push_str(s);
            offset
        });
        [offset, s.len() as u32]
    }
}

/// Reads a `FieldDescriptorProto`.
fn field(descriptor: &[u8]) -> Field {
    let kind = varint(descriptor, 5).expect("a field has a type") as u32;
    let repeated = varint(descriptor, 4) == Some(3);
    let synthetic = varint(descriptor, 17) == Some(1);
    let oneof = varint(descriptor, 9).filter(|_| !synthetic).map(|i| i as u32);
    let name = text(descriptor, 1);
    let json_name = match text(descriptor, 10) {
        json if json.is_empty() => lower_camel(&name),
        json => json,
    };
    let mut field = Field {
        name,
        json_name,
        number: varint(descriptor, 3).expect("a field has a number") as u32,
        flags: kind,
        type_name: text(descriptor, 6),
        oneof,
        ..Field::default()
    };
    if repeated {
        field.flags |= REPEATED;
    }
    if synthetic || oneof.is_some() {
        field.flags |= OPTIONAL;
    }
    let options = children(descriptor, 8).next().unwrap_or_default();
    if varint(options, SENSITIVE_OPTION) == Some(1) {
        field.flags |= SENSITIVE;
    }
    for rules in children(options, VALIDATE) {
        add_rules(&mut field, rules);
    }
    field
}

/// Keeps the rules of `validate.FieldRules` that matter: each is a message by kind of field.
fn add_rules(field: &mut Field, rules: &[u8]) {
    let rule = |number| children(rules, number).next().unwrap_or_default();
    // message.required, any.required, duration.required, timestamp.required
    if [(17, 2), (20, 1), (21, 1), (22, 1)].iter().any(|&(kind, n)| varint(rule(kind), n) == Some(1)) {
        field.flags |= REQUIRED;
    }
    // string.min_len, string.min_bytes, bytes.min_len, repeated.min_items, each with its ignore_empty
    let not_empty =
        |&(kind, n, ignore)| varint(rule(kind), n) >= Some(1) && varint(rule(kind), ignore) != Some(1);
    if [(14, 2, 26), (14, 4, 26), (15, 2, 14), (18, 1, 5)].iter().any(not_empty) {
        field.flags |= NOT_EMPTY;
    }
    // uint32 and uint64: lt, lte, gt, gte
    for kind in [5, 6] {
        let bounds = rule(kind);
        if let Some(lower) = varint(bounds, 5).or(varint(bounds, 4).map(|v| v + 1)) {
            field.lower = u32::try_from(lower).unwrap_or(u32::MAX);
            field.flags |= LOWER;
        }
        if let Some(upper) = varint(bounds, 3).or(varint(bounds, 2).map(|v| v - 1))
            && let Ok(upper) = u32::try_from(upper)
        {
            field.upper = upper;
            field.flags |= UPPER;
        }
    }
    // duration.gt
    if children(rule(21), 5).next().is_some() {
        field.flags |= POSITIVE_DURATION;
    }
}

/// The JSON name of a field without one of its own.
fn lower_camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut all, word| {
        let mut letters = word.chars();
        all.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        all.push_str(letters.as_str());
        all
    })
}

fn children(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    let mut reader = Reader(message);
    std::iter::from_fn(move || {
        loop {
            match reader.next().expect("the descriptor set is well formed")? {
                (n, Value::Bytes(bytes)) if n == number => return Some(bytes),
                _ => {}
            }
        }
    })
}

fn text(message: &[u8], number: u32) -> String {
    let bytes = children(message, number).last().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).expect("names are UTF-8")
}

fn varint(message: &[u8], number: u32) -> Option<u64> {
    let mut reader = Reader(message);
    let mut found = None;
    while let Some((n, value)) = reader.next().expect("the descriptor set is well formed") {
        if let (true, Value::Varint(v)) = (n == number, value) {
            found = Some(v);
        }
    }
    found
}
