//! Bookinfo's services as small servers in pods: each says who it is and what reached it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::netns::{Node, Pod, PodSpec};
use serde_json::json;

/// The port of all Bookinfo services.
pub const PORT: u16 = 9080;

/// One pod of a service.
pub struct Backend {
    pub service: String,
    pub version: String,
    pub pod: Pod,
    hits: Arc<AtomicU64>,
}

impl Backend {
    pub fn start(node: &Node, service: &str, version: &str, copy: &str, port: u16) -> Result<Self> {
        let spec = PodSpec::new(&format!("{service}-{version}{copy}"))
            .label("app", service)
            .label("version", version);
        let pod = node.pod_with(spec)?;
        let hits = Arc::new(AtomicU64::new(0));
        let (counted, by) = (hits.clone(), format!("{service}-{version}{copy}"));
        pod.netns().run(move || -> Result<()> {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("backend")?;
            // Threads stay in the namespace of the one that starts them.
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (counted, by) = (counted.clone(), by.clone());
                    std::thread::spawn(move || serve(stream, &by, &counted));
                }
            });
            Ok(())
        })??;
        Ok(Self { service: service.to_owned(), version: version.to_owned(), pod, hits })
    }

    /// Requests so far.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }
}

/// Answers until the connection ends.
///
/// | path | answer |
/// | --- | --- |
/// | `/slow` | after the milliseconds of `x-slow` |
/// | `/flaky` | 503 as long as `x-envoy-attempt-count` is at most `x-fail` |
/// | `/status/N` | N |
fn serve(stream: TcpStream, by: &str, hits: &AtomicU64) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let line = lines.next()?.ok()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        hits.fetch_add(1, Ordering::Relaxed);
        let number = |name: &str| headers.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        let status = match path.split('?').next()? {
            "/slow" => {
                std::thread::sleep(Duration::from_millis(number("x-slow")));
                200
            }
            "/flaky" if number("x-envoy-attempt-count") <= number("x-fail") => 503,
            path => path.strip_prefix("/status/").and_then(|status| status.parse().ok()).unwrap_or(200),
        };
        let mut body = json!({ "by": by, "method": method, "path": path, "headers": headers }).to_string();
        body.push('\n');
        let head = format!(
            "HTTP/1.1 {status} Of-Backend\r\nserver: backend\r\nx-backend: {by}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { "" } else { &body };
        writer.write_all(format!("{head}{body}").as_bytes()).ok()?;
    }
}
