//! Load of one protocol: a number of exchanges at a time, each connection used for a while and then
//! replaced by a new one. Every answer is compared with what was sent.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_tests::peer::Tally;
use mesh_tests::soak::Protocol;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::mixed::LocalExecutor;

/// Exchanges on one connection, before the next one.
const EXCHANGES: usize = 200;
/// The pace of one exchange after another on TCP connections, so that they live for a while.
const TCP_PACE: Duration = Duration::from_millis(5);
const STREAMS: usize = 8;
const LIMIT: Duration = Duration::from_secs(30);
const REPORTED_ERRORS: usize = 10;

type Shared = Rc<RefCell<Tally>>;

/// Runs until the end of standard input, then prints the tally. For every line of standard input it
/// prints the tally so far.
pub fn load(to: SocketAddr, protocol: Protocol, concurrency: usize) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let stopping = stop.clone();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            ask.send(()).ok();
        }
        stopping.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let tally = Shared::default();
        let per_connection = if matches!(protocol, Protocol::Http2 | Protocol::Grpc) { STREAMS } else { 1 };
        let lanes: Vec<_> = (0..concurrency.div_ceil(per_connection))
            .map(|_| tokio::task::spawn_local(lane(to, protocol, stop.clone(), tally.clone())))
            .collect();
        while asked.recv().await.is_some() {
            println!("{}", serde_json::to_string(&*tally.borrow())?);
        }
        for lane in lanes {
            lane.await?;
        }
        println!("{}", serde_json::to_string(&*tally.borrow())?);
        Ok(())
    })
}

async fn lane(to: SocketAddr, protocol: Protocol, stop: Arc<AtomicBool>, tally: Shared) {
    while !stop.load(Ordering::Relaxed) {
        let used = match protocol {
            Protocol::Http1 => http1(to, &stop, &tally).await,
            Protocol::Http2 | Protocol::Grpc => http2(to, protocol, &stop, &tally).await,
            Protocol::Tcp => tcp(to, &stop, &tally).await,
        };
        if let Err(error) = used {
            count(&tally, Err(error));
            // A service that is down must not be hammered; every try counts as a failure.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn count(tally: &Shared, result: Result<()>) -> bool {
    let mut tally = tally.borrow_mut();
    tally.exchanges += 1;
    let Err(error) = result else { return true };
    tally.failed += 1;
    if tally.errors.len() < REPORTED_ERRORS {
        tally.errors.push(format!("{error:#}"));
    }
    false
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream =
        tokio::time::timeout(LIMIT, TcpStream::connect(to)).await.context("connect")?.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn payload(protocol: Protocol) -> Bytes {
    let bytes = fastrand::usize(1..4096);
    let mut payload: Vec<u8> = (0..bytes).map(|_| fastrand::alphanumeric() as u8).collect();
    match protocol {
        Protocol::Grpc => {
            let length = (payload.len() as u32).to_be_bytes();
            payload.splice(0..0, [0].into_iter().chain(length));
        }
        Protocol::Tcp => payload.push(b'\n'),
        Protocol::Http1 | Protocol::Http2 => {}
    }
    payload.into()
}

fn request(to: SocketAddr, protocol: Protocol, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let builder = match protocol {
        Protocol::Http1 => Request::post("/echo").header("host", to.to_string()),
        _ => Request::post(format!("http://{to}/echo.Echo/Echo")).version(Version::HTTP_2),
    };
    let builder = match protocol {
        Protocol::Grpc => builder.header("content-type", "application/grpc").header("te", "trailers"),
        _ => builder,
    };
    Ok(builder.body(Full::new(body))?)
}

async fn check(response: http::Response<hyper::body::Incoming>, sent: Bytes, grpc: bool) -> Result<()> {
    let status = response.status();
    // An error of a proxy has its gRPC status in the head (gRPC over HTTP/2, "Trailers-Only").
    if let Some(code) = response.headers().get("grpc-status") {
        anyhow::bail!("grpc-status {code:?}: {:?}", response.headers().get("grpc-message"));
    }
    let body = response.into_body().collect().await.context("body")?;
    if status != 200 {
        anyhow::bail!("status {status}: {}", String::from_utf8_lossy(&body.to_bytes()));
    }
    let status = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
    ensure!(body.to_bytes() == sent, "the body is not the one that was sent");
    ensure!(!grpc || status.as_ref().is_some_and(|s| s == "0"), "grpc-status is {status:?}");
    Ok(())
}

async fn http1(to: SocketAddr, stop: &AtomicBool, tally: &Shared) -> Result<()> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connect(to).await?)).await?;
    let driver = tokio::task::spawn_local(connection);
    for _ in 0..EXCHANGES {
        // A server may end a connection between requests; that is no failure (RFC 9112, 9.5).
        if stop.load(Ordering::Relaxed) || sender.ready().await.is_err() {
            break;
        }
        let body = payload(Protocol::Http1);
        let exchange = async {
            let response =
                sender.send_request(request(to, Protocol::Http1, body.clone())?).await.context("send")?;
            check(response, body, false).await
        };
        if !count(tally, tokio::time::timeout(LIMIT, exchange).await.context("exchange").flatten()) {
            break;
        }
    }
    driver.abort();
    Ok(())
}

async fn http2(to: SocketAddr, protocol: Protocol, stop: &AtomicBool, tally: &Shared) -> Result<()> {
    let io = TokioIo::new(connect(to).await?);
    let handshake =
        hyper::client::conn::http2::Builder::new(LocalExecutor).timer(TokioTimer::new()).handshake(io);
    let (sender, connection) = handshake.await?;
    let driver = tokio::task::spawn_local(connection);
    let stream = |mut sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>| async move {
        for _ in 0..EXCHANGES {
            if stop.load(Ordering::Relaxed) || sender.ready().await.is_err() {
                return;
            }
            let body = payload(protocol);
            let exchange = async {
                let response =
                    sender.send_request(request(to, protocol, body.clone())?).await.context("send")?;
                check(response, body, protocol == Protocol::Grpc).await
            };
            if !count(tally, tokio::time::timeout(LIMIT, exchange).await.context("exchange").flatten()) {
                return;
            }
        }
    };
    futures_util::future::join_all((0..STREAMS).map(|_| stream(sender.clone()))).await;
    drop(sender);
    driver.abort();
    Ok(())
}

async fn tcp(to: SocketAddr, stop: &AtomicBool, tally: &Shared) -> Result<()> {
    let (reading, mut writing) = connect(to).await?.into_split();
    let mut reading = BufReader::new(reading);
    for _ in 0..EXCHANGES {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sent = payload(Protocol::Tcp);
        let mut got = Vec::new();
        let exchange = async {
            writing.write_all(&sent).await.context("send")?;
            reading.read_until(b'\n', &mut got).await.context("receive")?;
            ensure!(got == sent, "the answer is not the line that was sent ({} bytes)", got.len());
            Ok(())
        };
        if !count(tally, tokio::time::timeout(LIMIT, exchange).await.context("exchange").flatten()) {
            break;
        }
        tokio::time::sleep(TCP_PACE).await;
    }
    Ok(())
}
