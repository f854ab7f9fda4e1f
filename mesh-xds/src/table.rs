//! Layout of the schema table, shared by the build script that writes it and `schema` that reads it.
//!
//! The table is one block of little-endian 32-bit words and one block of text. It has no pointers, so the
//! linker keeps it in read-only pages that cost memory only where they are read.

/// Words before the first record: counts of messages, fields, enums, enum values, oneofs.
pub const HEADER_WORDS: usize = 5;
/// Name offset, name length, first field, number of fields, first oneof, number of oneofs.
pub const MESSAGE_WORDS: usize = 6;
/// Name offset, name length, JSON name offset, JSON name length, number, kind and flags, type index,
/// oneof index, lower bound, upper bound.
pub const FIELD_WORDS: usize = 10;
/// Name offset, name length, first value, number of values.
pub const ENUM_WORDS: usize = 4;
/// Name offset, name length, number.
pub const VALUE_WORDS: usize = 3;
/// Name offset, name length, 1 if one of its fields must be set.
pub const ONEOF_WORDS: usize = 3;

/// No type or no oneof.
pub const NONE: u32 = u32::MAX;

/// Flags of a field, above the eight bits of its kind (`FieldDescriptorProto.Type`).
pub const REPEATED: u32 = 1 << 8;
pub const MAP: u32 = 1 << 9;
/// Has presence: an unset scalar differs from a zero.
pub const OPTIONAL: u32 = 1 << 10;
/// `udpa.annotations.sensitive`: never shown.
pub const SENSITIVE: u32 = 1 << 11;
/// `validate.rules` that are kept: must be set, must not be empty, bounds of a number, duration above zero.
pub const REQUIRED: u32 = 1 << 12;
pub const NOT_EMPTY: u32 = 1 << 13;
pub const LOWER: u32 = 1 << 14;
pub const UPPER: u32 = 1 << 15;
pub const POSITIVE_DURATION: u32 = 1 << 16;
