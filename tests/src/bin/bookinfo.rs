//! The Bookinfo sample application as small real HTTP servers, one process per service and version.
//!
//! Exists so that the demo and the end-to-end tests carry the traffic of an application whose
//! services call each other over HTTP, each in a pod of its own. It must know nothing of the mesh:
//! a service only knows the names and addresses it is told with `--upstream`, as a container knows
//! its cluster's DNS.
//!
//! | service | answers | calls |
//! | --- | --- | --- |
//! | `productpage` | `/productpage`, `/api/v1/products/0` | `details`, `reviews` |
//! | `details` | `/details/0` | - |
//! | `reviews` v1, v2, v3 | `/reviews/0` (v2 black stars, v3 red stars, v1 none) | `ratings` (v2, v3) |
//! | `ratings` | `/ratings/0` | - |
//!
//! Every service also answers `/health`, and names itself in the header `x-bookinfo-pod`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
#[command(about = "One service of the Bookinfo sample application")]
struct Args {
    /// Which service this process is
    #[arg(long)]
    service: Service,
    /// Version shown in answers; decides whether `reviews` asks for ratings
    #[arg(long, default_value = "v1")]
    version: String,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    /// A service this one calls, as `name=address:port`; may be repeated
    #[arg(long = "upstream", value_parser = parse_upstream)]
    upstreams: Vec<(String, SocketAddr)>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    Productpage,
    Details,
    Reviews,
    Ratings,
}

fn parse_upstream(text: &str) -> Result<(String, SocketAddr)> {
    let (name, address) = text.split_once('=').ok_or_else(|| anyhow!("expected name=address:port"))?;
    Ok((name.to_owned(), address.parse().with_context(|| format!("`{address}` is not address:port"))?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: is another process using it?", args.listen))?;
    let app = Arc::new(App {
        service: args.service,
        version: args.version,
        upstreams: args.upstreams.into_iter().map(|(name, addr)| (name, Upstream::new(addr))).collect(),
    });
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("accept: {error}");
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let app = app.clone();
                async move { Ok::<_, Infallible>(app.answer(request).await) }
            });
            // A client that goes away mid-request is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

struct App {
    service: Service,
    version: String,
    upstreams: HashMap<String, Upstream>,
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if request.method() != Method::GET {
            return self.reply(
                StatusCode::METHOD_NOT_ALLOWED,
                "application/json",
                json!({"error": "GET only"}),
            );
        }
        if path == "/health" {
            return self.reply(StatusCode::OK, "application/json", json!({"status": "healthy"}));
        }
        let headers = forwarded_headers(request.headers());
        match (self.service, path.as_str()) {
            (Service::Details, "/details/0") => self.reply(StatusCode::OK, "application/json", details()),
            (Service::Ratings, "/ratings/0") => self.reply(StatusCode::OK, "application/json", ratings()),
            (Service::Reviews, "/reviews/0") => {
                let body = self.reviews(&headers).await;
                self.reply(StatusCode::OK, "application/json", body)
            }
            (Service::Productpage, "/api/v1/products/0") => {
                let (status, body) = self.product(&headers).await;
                self.reply(status, "application/json", body)
            }
            (Service::Productpage, "/productpage" | "/") => {
                let (status, body) = self.product(&headers).await;
                self.page(status, &body)
            }
            _ => self.reply(StatusCode::NOT_FOUND, "application/json", json!({"error": "no such path"})),
        }
    }

    /// v1 shows no stars; v2 and v3 ask `ratings` and colour what it says. A failing `ratings` is
    /// shown in the answer and does not fail it, as in the sample application.
    async fn reviews(&self, headers: &HeaderMap) -> Value {
        let color = match self.version.as_str() {
            "v1" => None,
            "v2" => Some("black"),
            _ => Some("red"),
        };
        let ratings = match color {
            None => None,
            Some(_) => Some(self.call("ratings", "/ratings/0", headers).await),
        };
        let stars = |reviewer: &str| match (&ratings, color) {
            (Some(Ok((StatusCode::OK, body))), Some(color)) => {
                json!({"stars": body["ratings"][reviewer], "color": color})
            }
            (Some(_), _) => json!({"error": "ratings is not available"}),
            (None, _) => Value::Null,
        };
        let mut reviews = vec![
            json!({"reviewer": "Reviewer1", "text": "An extremely entertaining play. The slapstick humour is refreshing!"}),
            json!({"reviewer": "Reviewer2", "text": "Absolutely fun and entertaining. The play lacks thematic depth."}),
        ];
        for review in &mut reviews {
            let rating = stars(review["reviewer"].as_str().unwrap_or_default());
            if !rating.is_null() {
                review["rating"] = rating;
            }
        }
        json!({"id": "0", "podname": format!("reviews-{}", self.version), "reviews": reviews})
    }

    /// The page's data: details and reviews are asked for at the same time. The page is an error if
    /// either cannot be shown, so that a broken call is never mistaken for a good answer.
    async fn product(&self, headers: &HeaderMap) -> (StatusCode, Value) {
        let (details, reviews) = tokio::join!(
            self.call("details", "/details/0", headers),
            self.call("reviews", "/reviews/0", headers)
        );
        let mut status = StatusCode::OK;
        let mut part = |answer: Result<(StatusCode, Value)>| match answer {
            Ok((StatusCode::OK, body)) => body,
            Ok((code, _)) => {
                status = StatusCode::BAD_GATEWAY;
                json!({"error": format!("answered {code}")})
            }
            Err(error) => {
                status = StatusCode::BAD_GATEWAY;
                json!({"error": format!("{error:#}")})
            }
        };
        let body =
            json!({"title": "The Comedy of Errors", "details": part(details), "reviews": part(reviews)});
        (status, body)
    }

    async fn call(&self, name: &str, path: &str, headers: &HeaderMap) -> Result<(StatusCode, Value)> {
        let upstream =
            self.upstreams.get(name).ok_or_else(|| anyhow!("start with --upstream {name}=address:port"))?;
        let (status, body) =
            upstream.get(name, path, headers).await.with_context(|| format!("calling {name}"))?;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    fn page(&self, status: StatusCode, product: &Value) -> Response<Full<Bytes>> {
        let html = format!(
            "<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1>\
             <h2>Details</h2><pre>{details:#}</pre><h2>Reviews</h2><pre>{reviews:#}</pre></body></html>",
            title = product["title"].as_str().unwrap_or_default(),
            details = product["details"],
            reviews = product["reviews"],
        );
        self.response(status, "text/html; charset=utf-8", html.into())
    }

    fn reply(&self, status: StatusCode, content_type: &'static str, body: Value) -> Response<Full<Bytes>> {
        self.response(status, content_type, body.to_string().into())
    }

    fn response(&self, status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let name = match self.service {
            Service::Productpage => "productpage",
            Service::Details => "details",
            Service::Reviews => "reviews",
            Service::Ratings => "ratings",
        };
        if let Ok(pod) = HeaderValue::from_str(&format!("{name}-{}", self.version)) {
            response.headers_mut().insert("x-bookinfo-pod", pod);
        }
        response
    }
}

/// The headers that every service passes on, so that one user request can be followed through all of
/// them (the list of the sample application).
fn forwarded_headers(from: &HeaderMap) -> HeaderMap {
    const PASSED_ON: [&str; 7] =
        ["x-request-id", "traceparent", "tracestate", "end-user", "user-agent", "cookie", "authorization"];
    let mut headers = HeaderMap::new();
    for name in PASSED_ON {
        if let Some(value) = from.get(name) {
            headers.insert(name, value.clone());
        }
    }
    headers
}

/// How long a connection is kept for the next request. Short, so that a mesh that starts finds no
/// connections from before its start in use for long.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// A service that is called, with its idle keep-alive connections and since when each is idle.
struct Upstream {
    address: SocketAddr,
    idle: Mutex<Vec<(Instant, SendRequest<Full<Bytes>>)>>,
}

impl Upstream {
    fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::new(Vec::new()) }
    }

    /// One GET; a connection that the peer closed while it was idle is replaced by a new one.
    async fn get(&self, name: &str, path: &str, headers: &HeaderMap) -> Result<(StatusCode, Bytes)> {
        const LIMIT: Duration = Duration::from_secs(10);
        tokio::time::timeout(LIMIT, async {
            while let Some(connection) = self.take_idle() {
                if connection.is_closed() {
                    continue;
                }
                match self.exchange(connection, name, path, headers).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if retryable(&error) => continue,
                    Err(error) => return Err(error),
                }
            }
            let connection = self.connect().await?;
            self.exchange(connection, name, path, headers).await
        })
        .await
        .map_err(|_| anyhow!("no answer from {} within {LIMIT:?}", self.address))?
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The last one has been idle for the shortest time.
        idle.retain(|(since, _)| since.elapsed() < IDLE_TIMEOUT);
        idle.pop().map(|(_, connection)| connection)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream =
            TcpStream::connect(self.address).await.with_context(|| format!("connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn exchange(
        &self,
        mut connection: SendRequest<Full<Bytes>>,
        name: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Bytes)> {
        connection.ready().await?;
        let mut request = Request::get(path)
            .header(header::HOST, format!("{name}:{}", self.address.port()))
            .body(Full::new(Bytes::new()))?;
        request.headers_mut().extend(headers.clone());
        let response = connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if connection.ready().await.is_ok() {
            self.idle
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push((Instant::now(), connection));
        }
        if status.is_informational() {
            bail!("unexpected {status}");
        }
        Ok((status, body))
    }
}

/// Whether the request certainly was not answered because an idle connection had been closed.
fn retryable(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<hyper::Error>()
        .is_some_and(|error| error.is_canceled() || error.is_closed() || error.is_incomplete_message())
}

fn details() -> Value {
    json!({
        "id": 0, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
        "publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
    })
}

fn ratings() -> Value {
    json!({"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}})
}
