//! Clients that send one request after the other on many connections, and count what fails.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Connections that send until they are told to end. On a thread of their own: pushes must not slow them.
pub struct Load {
    shared: Arc<Shared>,
    thread: std::thread::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    host: String,
    end: AtomicBool,
    answered: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
    progress: Notify,
}

/// What became of the requests.
pub struct Outcome {
    answered: u64,
    failed: Vec<String>,
}

impl Outcome {
    /// How many requests were answered as they should.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Panics if a request failed, or none was sent.
    pub fn none_failed(self) {
        assert!(self.failed.is_empty(), "{} of {} failed: {:?}", self.failed.len(), self.answered, {
            let mut few = self.failed;
            few.truncate(5);
            few
        });
        assert!(self.answered > 0);
    }
}

impl Load {
    /// So many connections send `GET /` with this host, in the network namespace of the caller.
    pub fn start(connections: usize, to: SocketAddr, host: &str) -> Self {
        let shared = Arc::new(Shared { host: host.to_owned(), ..Shared::default() });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            let shared = Rc::new(of_thread);
            for _ in 0..connections {
                let shared = shared.clone();
                local.spawn_local(async move {
                    while !shared.end.load(Ordering::Relaxed) {
                        if let Err(error) = connection(to, &shared).await {
                            shared.failed.lock().unwrap().push(error);
                        }
                    }
                });
            }
            runtime.block_on(local);
        });
        Self { shared, thread }
    }

    /// Returns after so many more answers.
    pub async fn more(&self, count: u64) {
        let wanted = self.shared.answered.load(Ordering::Relaxed) + count;
        while self.shared.answered.load(Ordering::Relaxed) < wanted {
            self.shared.progress.notified().await;
        }
    }

    pub async fn end(self) -> Outcome {
        self.more(100).await;
        self.shared.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let failed = std::mem::take(&mut *self.shared.failed.lock().unwrap());
        Outcome { answered: self.shared.answered.load(Ordering::Relaxed), failed }
    }
}

/// Sends on one connection until the server ends it after a whole answer, or the load ends.
async fn connection(to: SocketAddr, shared: &Shared) -> Result<(), String> {
    let mut io = TcpStream::connect(to).await.map_err(|error| format!("connect: {error}"))?;
    let mut buffer = Vec::new();
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", shared.host);
    while !shared.end.load(Ordering::Relaxed) {
        io.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
        let head = answer(&mut io, &mut buffer).await?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(head);
        }
        shared.answered.fetch_add(1, Ordering::Relaxed);
        shared.progress.notify_one();
        if head.to_ascii_lowercase().contains("connection: close") {
            return Ok(());
        }
    }
    Ok(())
}

/// One answer with a length; its head.
pub async fn answer(io: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<String, String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |length| length.trim().parse().unwrap_or(0));
            if buffer.len() >= end + 4 + length {
                buffer.drain(..end + 4 + length);
                return Ok(head);
            }
        }
        match io.read_buf(buffer).await {
            Ok(0) => return Err("closed before an answer".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("receive: {error}")),
        }
    }
}
