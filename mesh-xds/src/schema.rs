//! Which messages, fields and enums exist: a view of the table that the build script compiled.
//!
//! It must not copy the table to the heap: it is read rarely and the process should stay small.

use crate::table::*;

static WORDS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.words"));
static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/schema.text"));

fn word(index: usize) -> u32 {
    let bytes = &WORDS[index * 4..index * 4 + 4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn text(index: usize) -> &'static str {
    let offset = word(index) as usize;
    &TEXT[offset..offset + word(index + 1) as usize]
}

/// First word of each section, in the order of the header.
fn section(which: usize) -> usize {
    const SIZES: [usize; 5] = [MESSAGE_WORDS, FIELD_WORDS, ENUM_WORDS, VALUE_WORDS, ONEOF_WORDS];
    let before = (0..which).map(|i| word(i) as usize * SIZES[i]);
    HEADER_WORDS + before.sum::<usize>()
}

/// A message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message(usize);

impl Message {
    /// The type with this full name, such as `envoy.config.cluster.v3.Cluster`.
    pub fn named(name: &str) -> Option<Self> {
        let (mut low, mut high) = (0, word(0) as usize);
        while low < high {
            let middle = low.midpoint(high);
            let message = Self::at(middle);
            match message.name().cmp(name) {
                std::cmp::Ordering::Equal => return Some(message),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn at(index: usize) -> Self {
        Self(section(0) + index * MESSAGE_WORDS)
    }

    pub fn name(self) -> &'static str {
        text(self.0)
    }

    pub fn fields(self) -> impl Iterator<Item = Field> {
        let first = section(1) + word(self.0 + 2) as usize * FIELD_WORDS;
        (0..word(self.0 + 3) as usize).map(move |i| Field(first + i * FIELD_WORDS))
    }

    /// The field with this name, as in the proto file or in lowerCamelCase.
    pub fn field(self, name: &str) -> Option<Field> {
        self.fields().find(|f| f.name() == name || f.json_name() == name)
    }

    pub fn field_number(self, number: u32) -> Option<Field> {
        self.fields().find(|f| f.number() == number)
    }

    /// The oneofs: name, and whether one of the fields must be set.
    pub fn oneofs(self) -> impl Iterator<Item = (&'static str, bool)> {
        let first = section(4) + word(self.0 + 4) as usize * ONEOF_WORDS;
        (0..word(self.0 + 5) as usize).map(move |i| {
            let at = first + i * ONEOF_WORDS;
            (text(at), word(at + 2) == 1)
        })
    }
}

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub struct Field(usize);

/// What a field holds; of a repeated field, what each entry is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(Enum),
    Message(Message),
}

impl Field {
    pub fn name(self) -> &'static str {
        text(self.0)
    }

    pub fn json_name(self) -> &'static str {
        text(self.0 + 2)
    }

    pub fn number(self) -> u32 {
        word(self.0 + 4)
    }

    fn flag(self, flag: u32) -> bool {
        word(self.0 + 5) & flag != 0
    }

    pub fn repeated(self) -> bool {
        self.flag(REPEATED)
    }

    pub fn map(self) -> bool {
        self.flag(MAP)
    }

    /// True when an unset scalar differs from a zero.
    pub fn presence(self) -> bool {
        self.flag(OPTIONAL)
    }

    /// A private key or a password: never shown.
    pub fn sensitive(self) -> bool {
        self.flag(SENSITIVE)
    }

    pub fn required(self) -> bool {
        self.flag(REQUIRED)
    }

    pub fn not_empty(self) -> bool {
        self.flag(NOT_EMPTY)
    }

    pub fn positive_duration(self) -> bool {
        self.flag(POSITIVE_DURATION)
    }

    pub fn lower(self) -> Option<u32> {
        self.flag(LOWER).then(|| word(self.0 + 8))
    }

    pub fn upper(self) -> Option<u32> {
        self.flag(UPPER).then(|| word(self.0 + 9))
    }

    /// Index among the message's oneofs.
    pub fn oneof(self) -> Option<usize> {
        let index = word(self.0 + 7);
        (index != NONE).then_some(index as usize)
    }

    pub fn kind(self) -> Kind {
        let of = word(self.0 + 6) as usize;
        // FieldDescriptorProto.Type
        match word(self.0 + 5) & 0xff {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => Kind::Message(Message::at(of)),
            12 => Kind::Bytes,
            13 => Kind::Uint32,
            14 => Kind::Enum(Enum(section(2) + of * ENUM_WORDS)),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            18 => Kind::Sint64,
            other => unreachable!("type {other} of field {} is not of proto3", self.name()),
        }
    }
}

/// An enum type.
#[derive(Debug, Clone, Copy)]
pub struct Enum(usize);

impl Enum {
    pub fn values(self) -> impl Iterator<Item = (&'static str, i32)> {
        let first = section(3) + word(self.0 + 2) as usize * VALUE_WORDS;
        (0..word(self.0 + 3) as usize).map(move |i| {
            let at = first + i * VALUE_WORDS;
            (text(at), word(at + 2) as i32)
        })
    }
}
