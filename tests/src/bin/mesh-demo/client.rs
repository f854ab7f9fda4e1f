//! The visitor of the demo: asks for the product page over keep-alive connections and notes how it
//! went and which version of `reviews` each page shows.
//!
//! Runs inside the client pod as a subcommand of this program, and prints one line of JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

/// What the client saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub pages: u64,
    pub failed: u64,
    /// Why the first of the failed requests failed.
    pub first_failure: Option<String>,
    pub seconds: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// Pages by the version of `reviews` in them.
    pub reviews: BTreeMap<String, u64>,
    /// Where asked for: when each page came, microseconds since 1970, and whether it shows reviews-v3; in order.
    #[serde(default)]
    pub times: Vec<(u64, bool)>,
}

impl Report {
    /// When pages with reviews-v3 became rare: the moment that best splits the pages into those of which
    /// every second shows it and those of which every hundredth does. Microseconds since 1970.
    pub fn became_rare_us(&self) -> Option<u64> {
        let (mut sum, mut best, mut at) = (0.0, 0.0, None);
        for (i, (_, v3)) in self.times.iter().enumerate() {
            sum += if *v3 { (0.5f64 / 0.01).ln() } else { (0.5f64 / 0.99).ln() };
            if sum > best {
                (best, at) = (sum, self.times.get(i + 1).map(|(at, _)| *at));
            }
        }
        at
    }

    pub fn pages_per_s(&self) -> f64 {
        self.pages as f64 / self.seconds
    }
}

/// Asks for pages for `seconds` over `connections` connections at a time.
pub fn run(to: SocketAddr, connections: usize, seconds: u64, with_times: bool) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let until = started + Duration::from_secs(seconds);
        let visitors: Vec<_> = (0..connections).map(|_| tokio::spawn(visit(to, until))).collect();
        let mut report = Report::default();
        let mut times = Vec::new();
        for visitor in visitors {
            let visits = visitor.await.context("a visitor ended early")?;
            times.extend(visits.times);
            report.times.extend(visits.pages);
            report.failed += visits.failed;
            report.first_failure = report.first_failure.or(visits.first_failure);
            for (version, pages) in visits.reviews {
                *report.reviews.entry(version).or_default() += pages;
            }
        }
        times.sort_unstable();
        report.times.sort_unstable();
        if !with_times {
            report.times = Vec::new();
        }
        let at = |share: f64| {
            times
                .get((times.len() as f64 * share) as usize)
                .map_or(0, |time: &Duration| time.as_micros() as u64)
        };
        report.pages = times.len() as u64;
        report.seconds = started.elapsed().as_secs_f64();
        (report.p50_us, report.p99_us) = (at(0.5), at(0.99));
        Ok(report)
    })
}

/// What one connection's visitor saw.
#[derive(Default)]
struct Visits {
    times: Vec<Duration>,
    pages: Vec<(u64, bool)>,
    failed: u64,
    first_failure: Option<String>,
    reviews: BTreeMap<String, u64>,
}

async fn visit(to: SocketAddr, until: Instant) -> Visits {
    let mut visits = Visits::default();
    let mut connection = None;
    while Instant::now() < until {
        let started = Instant::now();
        match page(&mut connection, to).await {
            Ok(version) => {
                visits.times.push(started.elapsed());
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                visits.pages.push((now.as_micros() as u64, version == "reviews-v3"));
                *visits.reviews.entry(version).or_default() += 1;
            }
            Err(error) => {
                visits.failed += 1;
                visits.first_failure.get_or_insert(format!("{error:#}"));
                connection = None;
                // A service that refuses at once must not be asked a million times.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    visits
}

/// One page; the answer is the pod of `reviews` that is named in it.
async fn page(connection: &mut Option<SendRequest<Empty<Bytes>>>, to: SocketAddr) -> Result<String> {
    let sender = match connection.take() {
        Some(sender) if sender.is_ready() => sender,
        _ => connect(to).await?,
    };
    let sender = connection.insert(sender);
    let request = Request::get("/productpage")
        .header(header::HOST, format!("productpage:{}", to.port()))
        .body(Empty::new())?;
    let limit = Duration::from_secs(10);
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let _ = sender.ready().await;
        anyhow::Ok((status, body))
    };
    let (status, body) = tokio::time::timeout(limit, exchange).await.context("no answer within 10 s")??;
    let text = String::from_utf8_lossy(&body);
    if status != StatusCode::OK {
        bail!("status {status}: {}", text.chars().take(300).collect::<String>());
    }
    let version = text.split("\"podname\": \"").nth(1).and_then(|rest| rest.split('"').next());
    version.map(str::to_owned).context("the page names no reviews")
}

async fn connect(to: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = tokio::net::TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_of_a_change_is_read_from_the_pages() {
        let before = (0..1000).map(|i| (i, i % 2 == 0));
        let after = (1000..2000).map(|i| (i, i % 100 == 50));
        let report = Report { times: before.chain(after).collect(), ..Report::default() };
        let at = report.became_rare_us().unwrap();
        assert!((995..1005).contains(&at), "{at}");
        assert_eq!(Report::default().became_rare_us(), None);
    }
}
