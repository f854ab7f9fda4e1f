//! Reads the type information of the running kernel, for as much as the offsets of a few fields need.
//!
//! The format: Documentation/bpf/btf.rst of Linux. The file comes from the kernel, yet every access is checked:
//! a format that is not as expected is an error with a name, never a wrong offset.

use std::collections::HashMap;

use mesh_common::accel::Offsets;

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
/// Type modifiers and typedefs: what they mean is their target's.
const KIND_TRANSPARENT: [u32; 5] = [8, 9, 10, 11, 18];

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum BtfError {
    #[error("the kernel has no type information of its own: {0}; it needs CONFIG_DEBUG_INFO_BTF")]
    Missing(#[source] std::io::Error),
    #[error("the kernel's type information is not understood at byte {0}")]
    Format(usize),
    #[error("this kernel has no {0}")]
    NoField(&'static str),
}

/// The offsets that the programs need, from the running kernel.
pub(super) fn offsets() -> Result<Offsets, BtfError> {
    let bytes = std::fs::read("/sys/kernel/btf/vmlinux").map_err(BtfError::Missing)?;
    let types = Types::parse(&bytes)?;
    let at = |path| types.offset(path);
    Ok(Offsets {
        sock_socket: at("sock.sk_socket")?,
        sock_user_data: at("sock.sk_user_data")?,
        sock_low_watermark: at("sock.sk_rcvlowat")?,
        sock_flags: at("sock.__sk_common.skc_flags")?,
        sock_cookie: at("sock.__sk_common.skc_cookie")?,
        sock_net: at("sock.__sk_common.skc_net")?,
        socket_file: at("socket.file")?,
        socket_sock: at("socket.sk")?,
        file_flags: at("file.f_flags")?,
        file_inode: at("file.f_inode")?,
        inode_number: at("inode.i_ino")?,
        inode_super_block: at("inode.i_sb")?,
        super_block_device: at("super_block.s_dev")?,
        psock_queue: at("sk_psock.ingress_msg")?,
        message_list: at("sk_msg.list")?,
        message_size: at("sk_msg.sg.size")?,
        protocol_above: at("inet_connection_sock.icsk_ulp_ops")?,
        write_seq: at("tcp_sock.write_seq")?,
        message_receiver: at("sk_msg.sk_redir")?,
        message_start: at("sk_msg.sg.start")?,
        net_cookie: at("net.net_cookie")?,
        task_memory: at("task_struct.mm")?,
        memory_executable: at("mm_struct.exe_file")?,
        task_flags: at("task_struct.flags")?,
        registers_call: at("pt_regs.orig_ax").or_else(|_| at("pt_regs.syscallno")).unwrap_or_default(),
        splice_call: libc::SYS_splice as u32,
        own_process: 0,
        zerocopy_bit: types.enumerator("sock_flags", "SOCK_ZEROCOPY")?,
        known: 1,
    })
}

struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; type 0 is void and has no place.
    places: Vec<usize>,
    named: HashMap<(u32, &'a str), usize>,
}

/// The head that every type has.
struct Head {
    name: u32,
    kind: u32,
    members: usize,
    /// Offsets of members are of bits, with the width of a bit field above.
    wide: bool,
    target: u32,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at| word(bytes, at);
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()[..]) {
            return Err(BtfError::Format(0));
        }
        let header = word(4)? as usize;
        let (begin, length) = (header + word(8)? as usize, word(12)? as usize);
        let (text, text_length) = (header + word(16)? as usize, word(20)? as usize);
        let strings = bytes.get(text..text + text_length).ok_or(BtfError::Format(text))?;
        let mut types = Self { bytes, strings, places: vec![0], named: HashMap::new() };
        let mut at = begin;
        while at < begin + length {
            let head = types.head(at)?;
            types.places.push(at);
            if matches!(head.kind, KIND_STRUCT | KIND_UNION | KIND_ENUM) && head.name != 0 && head.members > 0
            {
                let name = types.text(head.name)?;
                types.named.entry((head.kind, name)).or_insert(at);
            }
            let rest = match head.kind {
                1 | 14 | 17 => 4,
                3 => 12,
                KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * head.members,
                KIND_ENUM | 13 => 8 * head.members,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return Err(BtfError::Format(at)),
            };
            at += 12 + rest;
        }
        Ok(types)
    }

    fn head(&self, at: usize) -> Result<Head, BtfError> {
        let info = word(self.bytes, at + 4)?;
        Ok(Head {
            name: word(self.bytes, at)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            wide: info >> 31 != 0,
            target: word(self.bytes, at + 8)?,
        })
    }

    fn text(&self, at: u32) -> Result<&'a str, BtfError> {
        let rest = self.strings.get(at as usize..).ok_or(BtfError::Format(at as usize))?;
        let end = memchr::memchr(0, rest).ok_or(BtfError::Format(at as usize))?;
        std::str::from_utf8(&rest[..end]).map_err(|_| BtfError::Format(at as usize))
    }

    /// The offset in bytes of `structure.member[.member]`.
    fn offset(&self, path: &'static str) -> Result<u32, BtfError> {
        let missing = BtfError::NoField(path);
        let mut names = path.split('.');
        let structure = names.next().unwrap_or_default();
        let Some(&(mut at)) = self.named.get(&(KIND_STRUCT, structure)) else { return Err(missing) };
        let mut bits = 0;
        for name in names {
            let Some((offset, target)) = self.member(at, name)? else { return Err(missing) };
            bits += offset;
            at = self.resolved(target)?;
        }
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing) }
    }

    /// Offset in bits and type of a member, also of one inside unnamed members.
    fn member(&self, at: usize, name: &str) -> Result<Option<(u32, u32)>, BtfError> {
        let head = self.head(at)?;
        if !matches!(head.kind, KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        for index in 0..head.members {
            let place = at + 12 + 12 * index;
            let (own, target) = (word(self.bytes, place)?, word(self.bytes, place + 4)?);
            let offset = word(self.bytes, place + 8)? & if head.wide { 0xff_ffff } else { u32::MAX };
            if own != 0 {
                if self.text(own)? == name {
                    return Ok(Some((offset, target)));
                }
            } else if let Some((inner, target)) = self.member(self.resolved(target)?, name)? {
                return Ok(Some((offset + inner, target)));
            }
        }
        Ok(None)
    }

    /// Where the type behind modifiers is; that of void for void.
    fn resolved(&self, mut target: u32) -> Result<usize, BtfError> {
        for _ in 0..32 {
            let at = *self.places.get(target as usize).ok_or(BtfError::Format(target as usize))?;
            let head = self.head(at)?;
            if !KIND_TRANSPARENT.contains(&head.kind) || target == 0 {
                return Ok(at);
            }
            target = head.target;
        }
        Err(BtfError::Format(target as usize))
    }

    fn enumerator(&self, name: &'static str, wanted: &'static str) -> Result<u32, BtfError> {
        let Some(&at) = self.named.get(&(KIND_ENUM, name)) else { return Err(BtfError::NoField(name)) };
        for index in 0..self.head(at)?.members {
            let place = at + 12 + 8 * index;
            if self.text(word(self.bytes, place)?)? == wanted {
                return word(self.bytes, place + 4);
            }
        }
        Err(BtfError::NoField(wanted))
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_ne_bytes).ok_or(BtfError::Format(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; union { struct { int b; long c; }; }; }`, with `int` of 4 bytes.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0colour\0RED\0BLUE\0int\0";
        let name = |text: &str| {
            let needle = format!("\0{text}\0");
            strings.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap() as u32 + 1
        };
        let mut types: Vec<u32> = vec![name("int"), 1 << 24, 4, 32];
        types.extend([0, KIND_STRUCT << 24 | 2, 16, name("b"), 1, 0, name("c"), 1, 64]);
        types.extend([0, KIND_UNION << 24 | 1, 16, 0, 2, 0]);
        types.extend([name("outer"), KIND_STRUCT << 24 | 2, 24, name("a"), 1, 0, 0, 3, 64]);
        types.extend([name("colour"), KIND_ENUM << 24 | 2, 4, name("RED"), 3, name("BLUE"), 18]);
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let length = 4 * types.len() as u32;
        for field in [24, 0, length, length, strings.len() as u32].into_iter().chain(types) {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_inside_unnamed_structures_and_unions() {
        let bytes = sample();
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.offset("outer.a").unwrap(), 0);
        assert_eq!(types.offset("outer.b").unwrap(), 8);
        assert_eq!(types.offset("outer.c").unwrap(), 16);
        assert!(matches!(types.offset("outer.d"), Err(BtfError::NoField("outer.d"))));
        assert!(matches!(types.offset("inner.a"), Err(BtfError::NoField("inner.a"))));
        assert_eq!(types.enumerator("colour", "BLUE").unwrap(), 18);
    }

    #[test]
    fn type_information_that_is_cut_off_is_an_error() {
        let whole = sample();
        for end in 0..whole.len() {
            if let Ok(types) = Types::parse(&whole[..end]) {
                assert!(types.offset("outer.c").is_err(), "{end}");
            }
        }
    }
}
