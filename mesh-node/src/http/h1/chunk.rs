//! Bodies as they come off the wire: by length, in chunks, or until the peer closes.
//!
//! A decoder takes bytes off the front of a read buffer and never copies them. It keeps no data of its own, so
//! what a body can hold in memory is the read buffer and nothing else.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::parse::{self, Framing, Limits, Progress};
use crate::http::body::BodyError;

/// Bytes of a chunk's extension that are read over. Nobody uses them; Envoy's bound is the header limit.
const MAX_EXTENSION_BYTES: usize = 4 << 10;

/// Where in a body the reader is.
#[derive(Debug)]
pub enum Decoder {
    /// Bytes that are still to come.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
    Done,
}

/// What the next bytes were.
#[derive(Debug)]
pub enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// The buffer is used up.
    More,
}

/// State of the chunked coding (RFC 9112 section 7.1).
#[derive(Debug)]
pub enum Chunks {
    Size { value: u64, digits: u8 },
    Extension { value: u64, length: usize },
    SizeLineFeed { value: u64 },
    Data { remaining: u64 },
    DataEnd,
    DataLineFeed,
    Trailers(Progress),
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::START),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Nothing of the body is left to read.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The length that is left, when it is known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Done => Some(0),
            _ => None,
        }
    }

    /// Takes the next piece off `buffer`. `eof`: the peer sends no more.
    ///
    /// # Errors
    /// The coding is broken, or the peer closed before the end.
    pub fn decode(
        &mut self,
        buffer: &mut BytesMut,
        eof: bool,
        limits: &Limits,
    ) -> Result<Decoded, BodyError> {
        let decoded = match self {
            Self::Done => return Ok(Decoded::End),
            Self::Length(left) => match take(buffer, left) {
                Some(data) => Decoded::Data(data),
                None => Decoded::More,
            },
            Self::UntilClose => match take(buffer, &mut { u64::MAX }) {
                Some(data) => Decoded::Data(data),
                None if eof => Decoded::End,
                None => Decoded::More,
            },
            Self::Chunked(state) => state.decode(buffer, limits)?,
        };
        match decoded {
            Decoded::More if eof => Err(BodyError::Incomplete),
            Decoded::End | Decoded::Trailers(_) => {
                *self = Self::Done;
                Ok(decoded)
            }
            Decoded::Data(_) if matches!(self, Self::Length(0)) => {
                *self = Self::Done;
                Ok(decoded)
            }
            _ => Ok(decoded),
        }
    }

    /// Notices an end that is already in the buffer, so that a reader of the last data frame knows that it was
    /// the last. Trailers are left for [`Decoder::decode`].
    pub fn settle(&mut self, buffer: &mut BytesMut) {
        const LAST: &[u8] = b"\r\n0\r\n\r\n";
        if let Self::Chunked(Chunks::DataEnd) = self
            && buffer.starts_with(LAST)
        {
            buffer.advance(LAST.len());
            *self = Self::Done;
        }
    }
}

/// At most `left` bytes off the buffer, without a copy.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    if buffer.is_empty() {
        return None;
    }
    let length = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= length as u64;
    Some(buffer.split_to(length).freeze())
}

impl Chunks {
    pub const START: Self = Self::Size { value: 0, digits: 0 };

    fn decode(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Decoded, BodyError> {
        loop {
            if let Self::Data { remaining } = self {
                let Some(data) = take(buffer, remaining) else { return Ok(Decoded::More) };
                if *remaining == 0 {
                    *self = Self::DataEnd;
                }
                return Ok(Decoded::Data(data));
            }
            if let Self::Trailers(progress) = self {
                return match parse::trailers(buffer, progress, limits) {
                    Ok(None) => Ok(Decoded::More),
                    Ok(Some(trailers)) if trailers.is_empty() => Ok(Decoded::End),
                    Ok(Some(trailers)) => Ok(Decoded::Trailers(trailers)),
                    Err(_) => Err(BodyError::Malformed("trailers")),
                };
            }
            let Some(&byte) = buffer.first() else { return Ok(Decoded::More) };
            buffer.advance(1);
            self.step(byte)?;
        }
    }

    /// One byte of the lines between data. Every line ends with CR LF, nothing else.
    fn step(&mut self, byte: u8) -> Result<(), BodyError> {
        *self = match (&*self, byte) {
            (&Self::Size { value, digits: digits @ 0..16 }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (&Self::Size { value, digits: 1.. }, b';' | b' ' | b'\t') => Self::Extension { value, length: 0 },
            (&Self::Size { value, digits: 1.. }, b'\r') => Self::SizeLineFeed { value },
            (Self::Size { .. }, _) => return Err(BodyError::Malformed("chunk size")),
            (&Self::Extension { value, .. }, b'\r') => Self::SizeLineFeed { value },
            (&Self::Extension { value, length }, b'\t' | b' '..=b'~' | 0x80..)
                if length < MAX_EXTENSION_BYTES =>
            {
                Self::Extension { value, length: length + 1 }
            }
            (Self::Extension { .. }, _) => return Err(BodyError::Malformed("chunk extension")),
            (Self::SizeLineFeed { value: 0 }, b'\n') => Self::Trailers(Progress::default()),
            (&Self::SizeLineFeed { value }, b'\n') => Self::Data { remaining: value },
            (Self::DataEnd, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::START,
            _ => return Err(BodyError::Malformed("end of a chunk")),
        };
        Ok(())
    }
}
