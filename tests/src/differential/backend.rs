//! The servers behind the proxies: they do what the `x-do` header of a request says and write down what
//! they saw.
//!
//! `x-do` holds commands separated by `;`: `status=503`, `body=TEXT`, `size=N`, `header=NAME:VALUE`, `chunked`,
//! `trailers=NAME:VALUE`, `close`, `eof` (no length), `delay=MS`, `first=N` (the rest holds for the first N
//! attempts only), `reset` (closes without an answer), `half=N` (N bytes of the body, then closes), `hang`,
//! `early` (answers before the body was read), `raw=BYTES` (`\r\n` written out), `upgrade`, `rst=REASON`
//! (HTTP/2), `http10`, `hold` (HTTP/1: until the last request of a case with `overlap` was answered).

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::backend_h2;
use super::case::BackendKind;
use super::io::{BoxStream, Certificates};
use super::wire::{Framing, Head, Headers, Payload, Reader};

/// A request as a backend saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    pub backend: String,
    pub method: String,
    pub target: String,
    pub version: String,
    /// Names as they came, sorted; values of one name in their order.
    pub headers: Headers,
    pub body: String,
    pub trailers: Headers,
    /// The body came to its end.
    pub complete: bool,
}

/// What the backends of one proxy saw, by the value of `x-case`.
#[derive(Debug, Default)]
pub struct Recorder {
    records: Mutex<BTreeMap<String, Vec<Record>>>,
    attempts: Mutex<HashMap<String, u32>>,
    /// Requests that arrived, for cases that hold some.
    arrived: watch::Sender<usize>,
    /// How often requests that are held were let go.
    released: watch::Sender<usize>,
}

impl Recorder {
    pub fn record(&self, case: &str, record: Record) {
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(case.to_owned())
            .or_default()
            .push(record);
    }

    /// Counts an arrival; which attempt of its case it is, from 1.
    pub fn arrive(&self, case: &str) -> u32 {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = attempts.entry(case.to_owned()).or_default();
        *attempt += 1;
        self.arrived.send_modify(|n| *n += 1);
        *attempt
    }

    pub fn arrivals(&self) -> watch::Receiver<usize> {
        self.arrived.subscribe()
    }

    /// Lets all requests go that are held now.
    pub fn release(&self) {
        self.released.send_modify(|n| *n += 1);
    }

    /// Changes when what arrives from now on may be answered.
    pub fn releases(&self) -> watch::Receiver<usize> {
        self.released.subscribe()
    }

    pub fn take(&self) -> BTreeMap<String, Vec<Record>> {
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a request asks its backend to do.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub trailers: Headers,
    pub chunked: bool,
    pub close: bool,
    pub eof: bool,
    pub reset: bool,
    pub half: Option<usize>,
    pub hang: bool,
    /// Until the last request of the case was answered.
    pub hold: bool,
    /// After `half` of the body, says nothing more (HTTP/1).
    pub stall: bool,
    pub early: bool,
    pub http10: bool,
    pub upgrade: bool,
    /// Statuses of interim answers (HTTP/2).
    pub interim: Vec<u16>,
    pub delay: Duration,
    pub raw: Option<String>,
    pub rst: Option<String>,
}

impl Orders {
    pub fn parse(text: Option<&str>, attempt: u32, backend: &str) -> Orders {
        let plain =
            Orders { status: 200, body: format!("hello from {backend}\n").into_bytes(), ..Orders::default() };
        let mut orders = plain.clone();
        for command in text.unwrap_or_default().split(';').filter(|command| !command.is_empty()) {
            let (name, value) = command.trim().split_once('=').unwrap_or((command.trim(), ""));
            let pair = || value.split_once(':').map(|(n, v)| (n.to_owned(), v.to_owned())).into_iter();
            match name {
                "first" if value.parse().is_ok_and(|first: u32| attempt > first) => return plain,
                "status" => orders.status = value.parse().unwrap_or(200),
                "body" => orders.body = value.as_bytes().to_vec(),
                "size" => orders.body = vec![b'x'; value.parse().unwrap_or(0)],
                "header" => orders.headers.extend(pair()),
                "trailers" => orders.trailers.extend(pair()),
                "chunked" => orders.chunked = true,
                "close" => orders.close = true,
                "eof" => orders.eof = true,
                "reset" => orders.reset = true,
                "half" => orders.half = value.parse().ok(),
                "hang" => orders.hang = true,
                "hold" => orders.hold = true,
                "stall" => orders.stall = true,
                "early" => orders.early = true,
                "http10" => orders.http10 = true,
                "upgrade" => orders.upgrade = true,
                "interim" => orders.interim.extend(value.parse::<u16>()),
                "delay" => orders.delay = Duration::from_millis(value.parse().unwrap_or(0)),
                "raw" => orders.raw = Some(value.replace("\\r", "\r").replace("\\n", "\n")),
                "rst" => orders.rst = Some(value.to_owned()),
                _ => {}
            }
        }
        orders
    }
}

/// Headers sorted by name, equal names in their order.
pub fn sorted(mut headers: Headers) -> Headers {
    headers.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    headers
}

/// The body of an answer with these headers: brotli is known by them only.
pub fn shown_of(bytes: &[u8], headers: &Headers) -> String {
    let is_brotli =
        |(name, value): &(String, String)| name.eq_ignore_ascii_case("content-encoding") && value == "br";
    if !headers.iter().any(is_brotli) {
        return shown(bytes);
    }
    let mut plain = Vec::new();
    match brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain) {
        Ok(_) => format!("brotli of {}", shown(&plain)),
        Err(error) => format!("broken brotli: {error}"),
    }
}

/// A body as a text that a difference can show.
pub fn shown(bytes: &[u8]) -> String {
    // Two compressors need not write the same bytes.
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        return match flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain) {
            Ok(_) => format!("gzip of {}", shown(&plain)),
            Err(error) => format!("broken gzip: {error}"),
        };
    }
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return match zstd::decode_all(bytes) {
            Ok(plain) => format!("zstd of {}", shown(&plain)),
            Err(error) => format!("broken zstd: {error}"),
        };
    }
    match bytes.len() {
        0..200 => String::from_utf8_lossy(bytes).into_owned(),
        length => format!("{length} bytes, sum {}", bytes.iter().map(|b| u64::from(*b)).sum::<u64>()),
    }
}

/// Starts the backends of one proxy; they end when the set is dropped.
pub async fn start(
    kinds: &BTreeMap<String, BackendKind>,
    ports: &BTreeMap<String, u16>,
    ip: IpAddr,
    certs: &Certificates,
    recorder: &Arc<Recorder>,
) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for (name, kind) in kinds {
        if *kind == BackendKind::Refused {
            continue;
        }
        let listener = TcpListener::bind((ip, ports[name])).await?;
        tasks.spawn(accept(listener, name.clone(), *kind, certs.clone(), recorder.clone()));
    }
    Ok(tasks)
}

async fn accept(
    listener: TcpListener,
    name: String,
    kind: BackendKind,
    certs: Certificates,
    recorder: Arc<Recorder>,
) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        tcp.set_nodelay(true).ok();
        let (name, certs, recorder) = (name.clone(), certs.clone(), recorder.clone());
        connections.spawn(async move {
            let Ok(stream) = secured(tcp, kind, &certs).await else { return };
            match kind {
                BackendKind::Http2 | BackendKind::TlsHttp2 => {
                    backend_h2::serve(stream, &name, &recorder).await
                }
                BackendKind::TcpEcho => echo(stream, false).await,
                BackendKind::TcpGreeting => echo(stream, true).await,
                _ => while_alive(serve(Reader::new(stream), &name, &recorder)).await,
            }
        });
    }
}

async fn secured(tcp: TcpStream, kind: BackendKind, certs: &Certificates) -> Result<BoxStream> {
    Ok(match kind {
        BackendKind::TlsHttp1 => Box::new(certs.acceptor(&["http/1.1"], false)?.accept(tcp).await?),
        BackendKind::MtlsHttp1 => Box::new(certs.acceptor(&["http/1.1"], true)?.accept(tcp).await?),
        BackendKind::TlsHttp2 => Box::new(certs.acceptor(&["h2"], false)?.accept(tcp).await?),
        _ => Box::new(tcp),
    })
}

async fn while_alive(serving: impl Future<Output = std::io::Result<()>>) {
    // A connection that the proxy closed is an ordinary end.
    serving.await.ok();
}

async fn echo(stream: BoxStream, greet: bool) {
    let (mut read, mut write) = tokio::io::split(stream);
    if greet && write.write_all(b"220 ready\n").await.is_err() {
        return;
    }
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        write.shutdown().await.ok();
    }
}

async fn serve(mut reader: Reader<BoxStream>, name: &str, recorder: &Recorder) -> std::io::Result<()> {
    while let Some(head) = reader.head().await? {
        let case = head.get("x-case").unwrap_or_default().to_owned();
        let mut releases = recorder.releases();
        let attempt = recorder.arrive(&case);
        let orders = Orders::parse(head.get("x-do"), attempt, name);
        if head.get("expect").is_some() && !orders.early {
            reader.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let upgrade = orders.upgrade;
        let framing = if upgrade { Framing::Length(0) } else { Framing::of(&head, true) };
        let payload = if orders.early { Payload::default() } else { reader.payload(framing).await };
        recorder.record(&case, record(name, &head, &payload));
        tokio::time::sleep(orders.delay).await;
        if orders.hold {
            releases.changed().await.ok();
        }
        let method = head.words()[0];
        if !answer(&mut reader, &orders, method == "HEAD", method == "CONNECT", name).await? {
            return Ok(());
        }
    }
    Ok(())
}

fn record(name: &str, head: &Head, payload: &Payload) -> Record {
    let [method, target, version] = head.words();
    Record {
        backend: name.to_owned(),
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        headers: sorted(head.headers.clone()),
        body: shown(&payload.bytes),
        trailers: payload.trailers.clone(),
        complete: payload.complete,
    }
}

/// Writes the answer; whether the connection goes on.
async fn answer(
    reader: &mut Reader<BoxStream>,
    orders: &Orders,
    head_only: bool,
    connect: bool,
    name: &str,
) -> std::io::Result<bool> {
    if orders.reset {
        return Ok(false);
    }
    if orders.hang {
        while reader.more().await? {}
        return Ok(false);
    }
    if let Some(raw) = &orders.raw {
        reader.io.write_all(raw.as_bytes()).await?;
        return Ok(false);
    }
    if orders.upgrade {
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let head = if connect { "HTTP/1.1 200 OK\r\n\r\n" } else { switched };
        reader.io.write_all(head.as_bytes()).await?;
        let rest = reader.rest();
        reader.io.write_all(&rest).await?;
        let (mut read, mut write) = tokio::io::split(&mut reader.io);
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await?;
        return Ok(false);
    }
    let version = if orders.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut text = format!("{version} {} Backend\r\nx-backend: {name}\r\n", orders.status);
    for (name, value) in &orders.headers {
        text += &format!("{name}: {value}\r\n");
    }
    let bodyless = orders.status == 204 || orders.status == 304;
    let chunked = orders.chunked || !orders.trailers.is_empty();
    if chunked {
        text += "transfer-encoding: chunked\r\n";
    } else if !orders.eof && !bodyless {
        text += &format!("content-length: {}\r\n", orders.body.len());
    }
    if orders.close {
        text += "connection: close\r\n";
    }
    text += "\r\n";
    let mut out = text.into_bytes();
    let body = &orders.body[..orders.half.unwrap_or(orders.body.len()).min(orders.body.len())];
    if head_only || bodyless {
    } else if chunked {
        for chunk in body.chunks(1000) {
            out.extend(format!("{:x}\r\n", chunk.len()).bytes());
            out.extend(chunk);
            out.extend(b"\r\n");
        }
        if orders.half.is_none() {
            out.extend(b"0\r\n");
            orders
                .trailers
                .iter()
                .for_each(|(name, value)| out.extend(format!("{name}: {value}\r\n").bytes()));
            out.extend(b"\r\n");
        }
    } else {
        out.extend(body);
    }
    reader.io.write_all(&out).await?;
    reader.io.flush().await?;
    if orders.stall {
        while reader.more().await? {}
    } else if orders.half.is_some() {
        // So that the proxy passes on what there is: whether it does when both come at once is chance.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(!(orders.close || orders.eof || orders.half.is_some() || orders.http10))
}
