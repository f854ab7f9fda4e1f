//! MongoDB's wire protocol, as far as Envoy's `mongo_proxy` counts it: the operations from before `OP_MSG`. Reads what
//! passes, keeps little of it, and gives up on what it does not know; it never changes a byte.

/// Of a message: longer ones are not MongoDB's (its limit is 48,000,000 bytes).
const MAX_MESSAGE: usize = 48_000_000 + 16 * 1024;
/// What is looked at of one.
const KEPT: usize = 64 << 10;
const HEADER: usize = 16;

/// The bytes are not the protocol's, or newer than what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a known message of MongoDB")]
pub struct Malformed;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Reply(Reply),
    Insert,
    Query(Query),
    GetMore,
    KillCursors,
    Command,
    CommandReply,
}

/// `OP_REPLY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The query that it answers.
    pub to: i32,
    pub flags: u32,
    pub cursor: i64,
    pub documents: u32,
    pub bytes: u64,
}

/// `OP_QUERY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub id: i32,
    pub flags: u32,
    pub of: Subject,
    /// The database is told how long it may take.
    pub bounded: bool,
}

/// What a query asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Command(String),
    Collection { name: String, kind: Kind },
}

/// Which documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    One,
    Some,
    Any,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Decoder {
    kept: Vec<u8>,
    /// Of the message whose beginning has been read.
    skip: usize,
}

impl Decoder {
    /// Takes the next bytes and tells of the messages that are known by now.
    ///
    /// # Errors
    /// The rest is not to be given here.
    pub fn feed(&mut self, mut bytes: &[u8], tell: &mut dyn FnMut(Op)) -> Result<(), Malformed> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = self.wanted()?;
            let taken = (wanted - self.kept.len()).min(bytes.len());
            self.kept.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.kept.len() < wanted {
                return Ok(());
            }
            if wanted > HEADER || self.wanted()? == HEADER {
                let length = length(&self.kept)?;
                self.skip = length - self.kept.len();
                let op = message(&self.kept, length)?;
                self.kept.clear();
                tell(op);
            }
        }
    }

    /// How much of the current message is kept.
    fn wanted(&self) -> Result<usize, Malformed> {
        if self.kept.len() < HEADER { Ok(HEADER) } else { Ok(length(&self.kept)?.min(KEPT)) }
    }
}

fn length(message: &[u8]) -> Result<usize, Malformed> {
    let length = usize::try_from(Reader(message).i32()?).map_err(|_| Malformed)?;
    if (HEADER..=MAX_MESSAGE).contains(&length) { Ok(length) } else { Err(Malformed) }
}

fn message(kept: &[u8], length: usize) -> Result<Op, Malformed> {
    let mut reader = Reader(kept);
    reader.i32()?;
    let (id, to, code) = (reader.i32()?, reader.i32()?, reader.i32()?);
    Ok(match code {
        1 => {
            let (flags, cursor) = (reader.i32()? as u32, reader.i64()?);
            reader.i32()?;
            let documents = u32::try_from(reader.i32()?).map_err(|_| Malformed)?;
            Op::Reply(Reply { to, flags, cursor, documents, bytes: (length - 36) as u64 })
        }
        2002 => Op::Insert,
        2004 => {
            let flags = reader.i32()? as u32;
            let full = reader.text()?;
            reader.i32()?;
            reader.i32()?;
            let (of, bounded) = subject(full, reader.document()?)?;
            Op::Query(Query { id, flags, of, bounded })
        }
        2005 => Op::GetMore,
        2007 => Op::KillCursors,
        2010 => Op::Command,
        2011 => Op::CommandReply,
        _ => return Err(Malformed),
    })
}

/// What a query is about, by the name of its collection and its document.
fn subject(full: &str, query: Document<'_>) -> Result<(Subject, bool), Malformed> {
    let (_, collection) = full.split_once('.').ok_or(Malformed)?;
    if collection != "$cmd" {
        let asked = query.find("$query")?.and_then(Element::document).unwrap_or(query);
        let bounded = query.find("$maxTimeMS")?.is_some();
        return Ok((Subject::Collection { name: collection.to_owned(), kind: asked.kind()? }, bounded));
    }
    let Some((name, first)) = query.elements().next().transpose()? else {
        return Ok((Subject::Command(String::new()), false));
    };
    let bounded = query.find("maxTimeMS")?.is_some();
    match (name, first.text()) {
        ("find", Some(of)) => {
            let kind = match query.find("filter")?.and_then(Element::document) {
                Some(filter) => filter.kind()?,
                None => Kind::Any,
            };
            Ok((Subject::Collection { name: of.to_owned(), kind }, bounded))
        }
        _ => Ok((Subject::Command(name.to_owned()), bounded)),
    }
}

/// A BSON document, of which the end may be missing.
#[derive(Debug, Clone, Copy)]
struct Document<'a>(&'a [u8]);

/// A value of one: its type and its bytes.
#[derive(Debug, Clone, Copy)]
struct Element<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Element<'a> {
    fn document(self) -> Option<Document<'a>> {
        (self.kind == 3).then(|| Reader(self.bytes).document().ok()).flatten()
    }

    fn text(self) -> Option<&'a str> {
        let bytes = self.bytes.get(4..self.bytes.len().checked_sub(1)?)?;
        (self.kind == 2).then(|| std::str::from_utf8(bytes).ok()).flatten()
    }
}

impl<'a> Document<'a> {
    /// Names and values, to the end or to where the bytes end.
    fn elements(self) -> impl Iterator<Item = Result<(&'a str, Element<'a>), Malformed>> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || {
            let kind = reader.byte().ok().filter(|kind| *kind != 0)?;
            let name = reader.text().ok()?;
            match reader.value(kind) {
                Ok(Some(bytes)) => Some(Ok((name, Element { kind, bytes }))),
                Ok(None) => None,
                Err(error) => {
                    reader.0 = &[];
                    Some(Err(error))
                }
            }
        })
    }

    fn find(self, wanted: &str) -> Result<Option<Element<'a>>, Malformed> {
        for element in self.elements() {
            let (name, element) = element?;
            if name == wanted {
                return Ok(Some(element));
            }
        }
        Ok(None)
    }

    /// Whether it names documents by their ids.
    fn kind(self) -> Result<Kind, Malformed> {
        Ok(match self.find("_id")? {
            None => Kind::Any,
            Some(id) => match id.document() {
                Some(of) if of.find("$in")?.is_some() => Kind::Some,
                _ => Kind::One,
            },
        })
    }
}

/// Reads little-endian values off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?))
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?))
    }

    /// Up to a zero, which goes with it.
    fn text(&mut self) -> Result<&'a str, Malformed> {
        let end = memchr::memchr(0, self.0).ok_or(Malformed)?;
        let text = std::str::from_utf8(self.take(end)?).map_err(|_| Malformed)?;
        self.take(1)?;
        Ok(text)
    }

    /// A document, or what is here of it.
    fn document(&mut self) -> Result<Document<'a>, Malformed> {
        let length =
            usize::try_from(self.i32()?).ok().and_then(|length| length.checked_sub(4)).ok_or(Malformed)?;
        let here = length.min(self.0.len());
        Ok(Document(self.take(here)?))
    }

    /// The bytes of a value (bsonspec.org); `None`: they are not all here.
    fn value(&mut self, kind: u8) -> Result<Option<&'a [u8]>, Malformed> {
        let announced = |extra: i64| {
            let length = self.0.get(..4).map(|four| i32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            match length {
                None => Ok(usize::MAX),
                Some(length) => usize::try_from(i64::from(length) + extra).map_err(|_| Malformed),
            }
        };
        let length = match kind {
            0x01 | 0x09 | 0x11 | 0x12 => 8,
            0x02 | 0x0d | 0x0e => announced(4)?,
            0x03 | 0x04 => announced(0)?,
            0x05 => announced(5)?,
            0x06 | 0x0a | 0x7f | 0xff => 0,
            0x07 => 12,
            0x08 => 1,
            0x0b => {
                let first = memchr::memchr(0, self.0).map(|at| at + 1);
                let second = first.and_then(|at| Some(at + memchr::memchr(0, &self.0[at..])? + 1));
                second.unwrap_or(usize::MAX)
            }
            0x10 => 4,
            0x13 => 16,
            _ => return Err(Malformed),
        };
        Ok(self.take(length).ok())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn header(op: i32, id: i32, to: i32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for value in [16 + body.len() as i32, id, to, op] {
            out.extend(value.to_le_bytes());
        }
        out.extend(body);
        out
    }

    fn bson(elements: &[u8]) -> Vec<u8> {
        let mut out = (elements.len() as i32 + 5).to_le_bytes().to_vec();
        out.extend(elements);
        out.push(0);
        out
    }

    fn text(name: &str, value: &str) -> Vec<u8> {
        let mut out = [b"\x02", name.as_bytes(), b"\0"].concat();
        out.extend((value.len() as i32 + 1).to_le_bytes());
        out.extend([value.as_bytes(), b"\0"].concat());
        out
    }

    fn inner(name: &str, value: Vec<u8>) -> Vec<u8> {
        [b"\x03", name.as_bytes(), b"\0", &value].concat()
    }

    fn number(name: &str) -> Vec<u8> {
        [b"\x10", name.as_bytes(), b"\0\x01\0\0\0"].concat()
    }

    pub(crate) fn query(id: i32, flags: i32, full: &str, elements: &[u8]) -> Vec<u8> {
        let mut body = flags.to_le_bytes().to_vec();
        body.extend([full.as_bytes(), b"\0"].concat());
        body.extend([0; 8]);
        body.extend(bson(elements));
        header(2004, id, 0, &body)
    }

    pub(crate) fn reply(to: i32, flags: i32, cursor: i64) -> Vec<u8> {
        let mut body = flags.to_le_bytes().to_vec();
        body.extend(cursor.to_le_bytes());
        body.extend([0; 4]);
        body.extend(1i32.to_le_bytes());
        body.extend(bson(&[]));
        header(1, 9, to, &body)
    }

    fn heard(bytes: &[u8], step: usize) -> Result<Vec<Op>, Malformed> {
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for piece in bytes.chunks(step) {
            decoder.feed(piece, &mut |op| heard.push(op))?;
        }
        Ok(heard)
    }

    fn subject_of(full: &str, elements: &[u8]) -> (Subject, bool) {
        match heard(&query(1, 0, full, elements), 4096).unwrap().remove(0) {
            Op::Query(query) => (query.of, query.bounded),
            op => panic!("{op:?}"),
        }
    }

    #[test]
    fn messages_are_told_however_they_arrive() {
        let mut bytes = query(7, 2, "db.books", &text("a", "b"));
        bytes.extend(header(2002, 1, 0, &vec![0; 200_000]));
        bytes.extend(reply(7, 2, 5));
        bytes.extend(header(2007, 1, 0, &[]));
        let whole = heard(&bytes, bytes.len()).unwrap();
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[2], Op::Reply(Reply { to: 7, flags: 2, cursor: 5, documents: 1, bytes: 5 }));
        for step in [1, 3, 17, 4096] {
            assert_eq!(heard(&bytes, step).unwrap(), whole, "{step}");
        }
    }

    #[test]
    fn a_query_says_what_it_is_about() {
        let of = |name: &str, kind| Subject::Collection { name: name.to_owned(), kind };
        assert_eq!(subject_of("db.a.b", &text("x", "y")), (of("a.b", Kind::Any), false));
        assert_eq!(subject_of("db.a", &number("_id")).0, of("a", Kind::One));
        let several = inner("_id", bson(&inner("$in", bson(&[]))));
        assert_eq!(subject_of("db.a", &several).0, of("a", Kind::Some));
        let wrapped = [inner("$query", bson(&number("_id"))), number("$maxTimeMS")].concat();
        assert_eq!(subject_of("db.a", &wrapped), (of("a", Kind::One), true));
        assert_eq!(subject_of("db.$cmd", &number("isMaster")).0, Subject::Command("isMaster".to_owned()));
        let find =
            [text("find", "books"), inner("filter", bson(&number("_id"))), number("maxTimeMS")].concat();
        assert_eq!(subject_of("db.$cmd", &find), (of("books", Kind::One), true));
    }

    #[test]
    fn what_is_not_the_protocol_is_given_up_on() {
        for bytes in [
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            header(2013, 1, 0, &[0; 20]),
            header(1, 1, 0, &[0; 3]),
            query(1, 0, "nodot", &[]),
            query(1, 0, "db.a", b"\x42bad\0"),
            vec![15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            vec![0xff; 64],
        ] {
            assert_eq!(heard(&bytes, 4096), Err(Malformed), "{bytes:?}");
        }
    }
}
