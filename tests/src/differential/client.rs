//! The client side: sends what a case says and writes down what it gets.

use std::net::IpAddr;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::{shown, shown_of, sorted};
use super::backend_h2;
use super::bootstrap::{ADMIN_PORT, LISTENER_PORT};
use super::case::{Protocol, Send};
use super::io::{BoxStream, Certificates};
use super::wire::{Framing, Headers, Reader};

/// An answer later than this counts as none.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long a connection is watched for what comes after the answer to raw bytes.
const AFTERWARDS: Duration = Duration::from_millis(150);

/// What the client got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// 0: none.
    pub status: u16,
    pub version: String,
    pub headers: Headers,
    pub body: String,
    pub trailers: Headers,
    /// Statuses of 1xx answers before.
    pub interim: Vec<u16>,
    /// `complete`, `cut` (closed or reset before the end) or what happened in place of an answer.
    pub end: String,
}

impl Answer {
    fn none(end: impl Into<String>) -> Answer {
        Answer { end: end.into(), ..Answer::default() }
    }
}

/// Sends one request as the `case`th of its file; all answers to it.
pub async fn send(request: &Send, case: &str, ip: IpAddr, certs: &Certificates) -> Vec<Answer> {
    let patience = request.give_up_after_ms.map_or(PATIENCE, Duration::from_millis);
    match tokio::time::timeout(patience, exchange(request, case, ip, certs)).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => vec![Answer::none(closed_or(&error))],
        Err(_) => vec![Answer::none("no answer in time")],
    }
}

/// How a connection fails is a matter of timing (reset or end of file): both are "closed".
fn closed_or(error: &anyhow::Error) -> String {
    if error.downcast_ref::<std::io::Error>().is_some() { "closed".to_owned() } else { format!("{error:#}") }
}

async fn exchange(request: &Send, case: &str, ip: IpAddr, certs: &Certificates) -> Result<Vec<Answer>> {
    let stream = connect(request, ip, certs).await?;
    match (request.protocol, &request.raw) {
        (_, Some(raw)) => send_raw(stream, &raw.replace("${case}", case)).await,
        (Protocol::Tcp, _) => send_tcp(stream, request).await,
        (Protocol::H2, _) => Ok(vec![send_h2(stream, request, case).await?]),
        _ if request.admin => Ok(vec![of_page(send_h1(stream, request, case).await?)]),
        _ => Ok(vec![send_h1(stream, request, case).await?]),
    }
}

/// What counts of an admin page.
fn of_page(mut answer: Answer) -> Answer {
    answer.headers.retain(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(&answer.body) {
        answer.body = json.to_string();
    }
    answer
}

async fn connect(request: &Send, ip: IpAddr, certs: &Certificates) -> Result<BoxStream> {
    let port = if request.admin { ADMIN_PORT } else { LISTENER_PORT };
    let tcp = TcpStream::connect((ip, port)).await?;
    tcp.set_nodelay(true)?;
    Ok(match &request.tls {
        None => Box::new(tcp),
        Some(tls) => {
            let alpn = if request.protocol == Protocol::H2 { "h2" } else { "http/1.1" };
            certs.connect(tcp, &tls.sni, alpn, tls.client_certificate).await?
        }
    })
}

fn body(request: &Send) -> Vec<u8> {
    match request.body_size {
        0 => request.body.clone().into_bytes(),
        size => (0..size).map(|n| b'a' + (n % 26) as u8).collect(),
    }
}

fn split(header: &str) -> (&str, &str) {
    let (name, value) = header.split_once(':').unwrap_or((header, ""));
    (name, value.trim())
}

async fn send_h1(stream: BoxStream, request: &Send, case: &str) -> Result<Answer> {
    let mut reader = Reader::new(stream);
    let version = if request.protocol == Protocol::H10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut head = format!("{} {} {version}\r\n", request.method, request.path);
    if !request.host.is_empty() {
        head += &format!("Host: {}\r\n", request.host);
    }
    head += &format!("X-Case: {case}\r\n");
    for header in &request.headers {
        head += &format!("{header}\r\n");
    }
    let body = body(request);
    if request.chunked {
        head += "Transfer-Encoding: chunked\r\n";
    } else if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    if request.expect_continue {
        head += "Expect: 100-continue\r\n";
    }
    head += "\r\n";
    reader.io.write_all(head.as_bytes()).await?;
    let mut answer = Answer::default();
    if request.expect_continue {
        let first = read_head(&mut reader, &mut answer).await?;
        if first != 100 {
            return read_body(&mut reader, answer, request).await;
        }
    }
    reader.io.write_all(&framed(request, &body)).await?;
    loop {
        match read_head(&mut reader, &mut answer).await? {
            101 => break,
            200..300 if request.method == "CONNECT" => break,
            100..200 => {}
            _ => return read_body(&mut reader, answer, request).await,
        }
    }
    let payload = request.after_upgrade.clone().unwrap_or_default();
    reader.io.write_all(payload.as_bytes()).await?;
    let echoed = reader.payload(Framing::Length(payload.len())).await;
    Ok(Answer { body: shown(&echoed.bytes), end: "upgraded".to_owned(), ..answer })
}

fn framed(request: &Send, body: &[u8]) -> Vec<u8> {
    if !request.chunked {
        return body.to_vec();
    }
    let mut out = Vec::new();
    for chunk in body.chunks(4000) {
        out.extend(format!("{:x}\r\n", chunk.len()).bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\n");
    request.trailers.iter().for_each(|trailer| out.extend(format!("{trailer}\r\n").bytes()));
    out.extend(b"\r\n");
    out
}

/// Reads a head into `answer`; its status.
async fn read_head(reader: &mut Reader<BoxStream>, answer: &mut Answer) -> Result<u16> {
    let head = reader.head().await?.ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
    let [version, status, _] = head.words();
    if matches!(answer.status, 100..200) {
        answer.interim.push(answer.status);
    }
    answer.status = status.parse().with_context(|| format!("status line {:?}", head.start))?;
    answer.version = version.to_owned();
    answer.headers = head.headers;
    Ok(answer.status)
}

async fn read_body(reader: &mut Reader<BoxStream>, mut answer: Answer, request: &Send) -> Result<Answer> {
    let head = super::wire::Head { start: String::new(), headers: std::mem::take(&mut answer.headers) };
    let bodyless = request.method == "HEAD" || matches!(answer.status, 204 | 304);
    let framing = if bodyless { Framing::Length(0) } else { Framing::of(&head, false) };
    let payload = reader.payload(framing).await;
    answer.headers = sorted(head.headers);
    answer.body = shown_of(&payload.bytes, &answer.headers);
    answer.trailers = payload.trailers;
    answer.end = if payload.complete { "complete" } else { "cut" }.to_owned();
    Ok(answer)
}

/// Every answer until the connection is quiet or closed; the last one says which.
async fn send_raw(mut stream: BoxStream, raw: &str) -> Result<Vec<Answer>> {
    // The proxy may answer and close before it has read everything.
    let sent = stream.write_all(raw.as_bytes()).await;
    let mut reader = Reader::new(stream);
    let mut answers = Vec::new();
    let get = Send { method: if raw.starts_with("HEAD") { "HEAD" } else { "GET" }.to_owned(), ..empty() };
    loop {
        let patience = if answers.is_empty() { PATIENCE } else { AFTERWARDS };
        let mut answer = Answer::default();
        match tokio::time::timeout(patience, read_head(&mut reader, &mut answer)).await {
            Err(_) => {
                answers.push(Answer::none("open"));
                return Ok(answers);
            }
            Ok(Err(_)) => {
                answers.push(Answer::none("closed"));
                return Ok(answers);
            }
            Ok(Ok(_)) if sent.is_err() && answers.len() > 8 => return Err(anyhow!("answers without end")),
            Ok(Ok(_)) => {
                answers.push(read_body(&mut reader, answer, &get).await?);
                if closing(answers.last()) {
                    // When exactly the socket closes after that is a matter of delays.
                    answers.push(Answer::none("closed"));
                    return Ok(answers);
                }
            }
        }
    }
}

fn closing(answer: Option<&Answer>) -> bool {
    let mut headers = answer.into_iter().flat_map(|answer| &answer.headers);
    headers
        .any(|(name, value)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"))
}

fn empty() -> Send {
    Send {
        method: String::new(),
        path: String::new(),
        host: String::new(),
        headers: Vec::new(),
        body: String::new(),
        body_size: 0,
        chunked: false,
        trailers: Vec::new(),
        protocol: Protocol::H1,
        tls: None,
        raw: None,
        expect_continue: false,
        tunnel: None,
        admin: false,
        after_upgrade: None,
        give_up_after_ms: None,
        repeat: 1,
    }
}

async fn send_tcp(mut stream: BoxStream, request: &Send) -> Result<Vec<Answer>> {
    stream.write_all(&body(request)).await?;
    let mut bytes = Vec::new();
    // A reset and an end are the same to a client that got nothing; which it is depends on timing.
    let read = async {
        if let Some(wanted) = &request.after_upgrade {
            while !bytes.ends_with(wanted.as_bytes()) && stream.read_buf(&mut bytes).await? > 0 {}
        }
        stream.shutdown().await?;
        stream.read_to_end(&mut bytes).await
    };
    let end = if read.await.is_err() && !bytes.is_empty() { "cut" } else { "complete" };
    Ok(vec![Answer { body: shown(&bytes), ..Answer::none(end) }])
}

async fn send_h2(stream: BoxStream, request: &Send, case: &str) -> Result<Answer> {
    let (mut client, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let outcome = exchange_h2(&mut client, request, case).await;
    driver.abort();
    match outcome {
        Ok(answer) => Ok(answer),
        Err(Failure::H2(error)) => Ok(Answer::none(h2_end(&error))),
        Err(Failure::Http(error)) => Err(error),
    }
}

enum Failure {
    H2(h2::Error),
    Http(anyhow::Error),
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Failure::H2(error)
    }
}

fn h2_end(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) if error.is_go_away() => format!("goaway {reason:?}"),
        Some(reason) => format!("reset {reason:?}"),
        None => "closed".to_owned(),
    }
}

async fn exchange_h2(
    client: &mut h2::client::SendRequest<Bytes>,
    request: &Send,
    case: &str,
) -> Result<Answer, Failure> {
    let scheme = if request.tls.is_some() { "https" } else { "http" };
    let mut builder = http::Request::builder()
        .method(request.method.as_str())
        .uri(format!("{scheme}://{}{}", request.host, request.path))
        .header("x-case", case);
    for header in &request.headers {
        let (name, value) = split(header);
        builder = builder.header(name, value);
    }
    let mut message = builder.body(()).map_err(|error| Failure::Http(error.into()))?;
    let connect = message.method() == http::Method::CONNECT;
    if let Some(protocol) = &request.tunnel {
        message.extensions_mut().insert(h2::ext::Protocol::from(protocol.as_str()));
    } else if connect {
        let target: http::uri::Authority =
            request.host.parse().map_err(|error| Failure::Http(anyhow!("{error}")))?;
        *message.uri_mut() = http::Uri::from(target);
    }
    std::future::poll_fn(|cx| client.poll_ready(cx)).await?;
    if request.tunnel.is_some() {
        // So that the proxy's settings are there: whether they are obeyed before that is chance.
        tokio::time::sleep(AFTERWARDS).await;
    }
    let body = Bytes::from(body(request));
    let trailers: Headers =
        request.trailers.iter().map(|t| split(t)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let ended = body.is_empty() && trailers.is_empty() && !connect;
    let (mut response, mut stream) = client.send_request(message, ended)?;
    if !body.is_empty() {
        stream.send_data(body, trailers.is_empty())?;
    }
    if !trailers.is_empty() {
        stream.send_trailers(backend_h2::header_map(&trailers))?;
    }
    let mut interim = Vec::new();
    let response = std::future::poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(early))) = response.poll_informational(cx) {
            interim.push(early.status().as_u16());
        }
        std::pin::Pin::new(&mut response).poll(cx)
    });
    let (parts, mut body) = response.await?.into_parts();
    let mut answer = Answer {
        status: parts.status.as_u16(),
        version: "HTTP/2".to_owned(),
        headers: backend_h2::pairs(&parts.headers),
        end: "complete".to_owned(),
        interim,
        ..Answer::default()
    };
    if connect && parts.status.is_success() {
        let payload = Bytes::from(request.after_upgrade.clone().unwrap_or_default());
        let (length, mut echoed) = (payload.len(), Vec::new());
        stream.send_data(payload, false)?;
        while echoed.len() < length
            && let Some(data) = body.data().await
        {
            echoed.extend_from_slice(&data?);
        }
        return Ok(Answer { body: shown(&echoed), end: "upgraded".to_owned(), ..answer });
    } else if connect {
        stream.send_data(Bytes::new(), true).ok();
    }
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                body.flow_control().release_capacity(data.len())?;
                bytes.extend_from_slice(&data);
            }
            Err(error) => {
                answer.end = h2_end(&error);
                break;
            }
        }
    }
    if answer.end == "complete"
        && let Ok(Some(trailers)) = body.trailers().await
    {
        answer.trailers = backend_h2::pairs(&trailers);
    }
    answer.body = shown_of(&bytes, &answer.headers);
    Ok(answer)
}
