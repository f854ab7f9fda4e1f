//! A server on a loopback socket with a service that tests choose, and a raw client for it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet};

use crate::budget::Held;
use crate::drain::Signal;
use crate::http::body::Body;
use crate::http::h1::client::{self, Connection, Lease};
use crate::http::h1::server::{End, Options, serve};
use crate::http::service::{HttpService, Refusal, Reset};

pub(super) type Answer = Result<Response<Body>, Reset>;

/// A service from a function.
pub(super) struct FnService<F> {
    answer: F,
    pub read: Cell<usize>,
    pub written: Cell<usize>,
}

impl<F, A> HttpService for FnService<F>
where
    F: Fn(Request<Body>) -> A + 'static,
    A: Future<Output = Answer>,
{
    type Body = Body;

    async fn call(self: &Rc<Self>, request: Request<Body>) -> Answer {
        (self.answer)(request).await
    }

    fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        let mut response = Response::new(Body::from_bytes(refusal.body));
        *response.status_mut() = refusal.status;
        response
    }

    fn on_cut(&self, _: bool) {}

    fn on_read(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes);
    }

    fn on_written(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes);
    }
}

/// A connected pair: a raw client, and the server's task.
pub(super) struct Served {
    pub client: TcpStream,
    pub server: JoinHandle<End>,
    pub drain: Arc<Signal>,
}

/// Serves one loopback connection.
pub(super) async fn served<F, A>(options: Options, answer: F) -> Served
where
    F: Fn(Request<Body>) -> A + 'static,
    A: Future<Output = Answer> + 'static,
{
    let (client, io) = pair().await;
    let service = Rc::new(FnService { answer, read: Cell::new(0), written: Cell::new(0) });
    let drain = Arc::new(Signal::default());
    let server = tokio::task::spawn_local(serve(io, Bytes::new(), Rc::new(options), service, drain.clone()));
    Served { client, server, drain }
}

pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// Runs a test on one thread, as the data path does.
pub(super) fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// All that comes until the peer closes.
pub(super) async fn read_all(io: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset after the answer still leaves the answer.
    let _ = io.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until `end` has come.
pub(super) async fn read_until(io: &mut TcpStream, end: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    while !all.contains(end) {
        let length = io.read(&mut buffer).await.unwrap();
        assert!(length > 0, "connection closed before {end:?}, after {all:?}");
        all.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    all
}

/// Sends `request` to a service and returns what it answers until it closes.
pub(super) async fn ask(options: Options, request: &[u8]) -> (String, End) {
    let mut served = served(options, echo).await;
    served.client.write_all(request).await.unwrap();
    let answer = read_all(&mut served.client).await;
    drop(served.client);
    (answer, served.server.await.unwrap())
}

/// Answers with the method, the target, the host and the body.
pub(super) async fn echo(request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").map_or("-", |host| host.to_str().unwrap());
    let head = format!("{} {} {host} ", parts.method, parts.uri);
    let body = body.collect().await.map_err(|_| Reset)?.to_bytes();
    Ok(Response::new(Body::from_bytes([head.as_bytes(), &body].concat())))
}

/// A pool of at most one connection.
#[derive(Clone, Default)]
pub(super) struct Home(pub Rc<RefCell<Option<Kept>>>);

type Kept = Box<Connection<TcpStream, Home>>;

impl Lease<TcpStream> for Home {
    fn release(self, connection: Box<Connection<TcpStream, Self>>) {
        *self.0.borrow_mut() = Some(connection);
    }
}

/// A client's connection and the raw server at its other end.
pub(super) async fn connection() -> (Box<Connection<TcpStream, Home>>, TcpStream) {
    let (client, server) = pair().await;
    (Connection::new(client, client::Options::default(), Held::default()), server)
}
