//! HTTP/1 messages as bytes: read as they came, written as asked. Lenient on purpose: it is not the subject
//! of the comparison.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

pub type Headers = Vec<(String, String)>;

/// Start line and headers.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub start: String,
    pub headers: Headers,
}

impl Head {
    /// The first value of a header; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// The parts of the start line.
    pub fn words(&self) -> [&str; 3] {
        let mut words = self.start.splitn(3, ' ');
        std::array::from_fn(|_| words.next().unwrap_or_default())
    }
}

/// A body and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    pub bytes: Vec<u8>,
    pub trailers: Headers,
    pub complete: bool,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    Chunked,
    ToEnd,
}

impl Framing {
    pub fn of(head: &Head, request: bool) -> Framing {
        if head.get("transfer-encoding").is_some_and(|te| te.to_ascii_lowercase().contains("chunked")) {
            return Framing::Chunked;
        }
        match head.get("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => Framing::Length(length),
            None if request => Framing::Length(0),
            None => Framing::ToEnd,
        }
    }
}

/// Reads messages from a stream.
pub struct Reader<R> {
    pub io: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io, buffer: Vec::new() }
    }

    /// The next head; `None` at the end of the stream.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let Some(start) = self.line().await? else { return Ok(None) };
        let headers = self.headers().await?;
        Ok(Some(Head { start, headers }))
    }

    pub async fn payload(&mut self, framing: Framing) -> Payload {
        let mut payload = Payload::default();
        payload.complete = self.fill(framing, &mut payload).await.unwrap_or(false);
        payload
    }

    async fn fill(&mut self, framing: Framing, payload: &mut Payload) -> io::Result<bool> {
        match framing {
            Framing::Length(length) => self.take(length, &mut payload.bytes).await,
            Framing::ToEnd => {
                while self.more().await? {}
                payload.bytes.append(&mut self.buffer);
                Ok(true)
            }
            Framing::Chunked => loop {
                let Some(line) = self.line().await? else { return Ok(false) };
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
                    .map_err(|_| io::ErrorKind::InvalidData)?;
                if size == 0 {
                    payload.trailers = self.headers().await?;
                    return Ok(true);
                }
                if !self.take(size, &mut payload.bytes).await? || self.line().await?.is_none() {
                    return Ok(false);
                }
            },
        }
    }

    async fn headers(&mut self) -> io::Result<Headers> {
        let mut headers = Headers::new();
        while let Some(line) = self.line().await? {
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    async fn take(&mut self, length: usize, into: &mut Vec<u8>) -> io::Result<bool> {
        while self.buffer.len() < length {
            if !self.more().await.unwrap_or(false) {
                into.append(&mut self.buffer);
                return Ok(false);
            }
        }
        into.extend(self.buffer.drain(..length));
        Ok(true)
    }

    /// Reads on; false at the end of the stream.
    pub async fn more(&mut self) -> io::Result<bool> {
        Ok(self.io.read_buf(&mut self.buffer).await? > 0)
    }

    /// What was read and not used.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}
