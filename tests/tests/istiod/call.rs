//! One request from inside a pod, and what came back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::netns::Pod;
use serde_json::Value;

/// Headers whose values are of one request or one proxy: they must be there on both or on neither.
const OWN_VALUES: [&str; 4] = ["date", "x-envoy-upstream-service-time", "x-request-id", "x-forwarded-for"];
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    pub to: SocketAddr,
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Ask {
    pub fn get(to: SocketAddr, host: &str, path: &str) -> Self {
        let headers = vec![("host".to_owned(), host.to_owned())];
        Self { to, method: "GET", path: path.to_owned(), headers }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// Asks from inside `pod`, on a connection of its own. `None`: the connection ended without an answer.
    pub fn from(&self, pod: &Pod) -> Result<Option<Answer>> {
        pod.netns().run(|| self.send())?
    }

    fn send(&self) -> Result<Option<Answer>> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => drop(other?),
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        Answer::parse(&String::from_utf8_lossy(&bytes), start.elapsed()).map(Some)
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub took: Duration,
}

impl Answer {
    fn parse(text: &str, took: Duration) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Ok(Self { status: status.parse()?, headers, body: body.to_owned(), took })
    }

    /// The backend's account of the request, if a backend answered.
    pub fn seen(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The backend that answered, as `SERVICE-VERSION`.
    pub fn by(&self) -> String {
        self.seen()["by"].as_str().unwrap_or_default().to_owned()
    }

    /// Everything that two proxies with one configuration must agree on.
    pub fn comparable(&self) -> Value {
        let mut seen = self.seen();
        if let Some(headers) = seen["headers"].as_object_mut() {
            blank(headers.iter_mut().map(|(name, value)| (name.as_str(), value)));
        }
        let mut headers: BTreeMap<String, Value> =
            self.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        blank(headers.iter_mut().map(|(name, value)| (name.as_str(), value)));
        let body = if seen.is_null() { self.body.clone().into() } else { seen };
        serde_json::json!({ "status": self.status, "headers": headers, "body": body })
    }
}

fn blank<'a>(headers: impl Iterator<Item = (&'a str, &'a mut Value)>) {
    for (name, value) in headers {
        if OWN_VALUES.contains(&name) {
            *value = "*".into();
        }
    }
}
