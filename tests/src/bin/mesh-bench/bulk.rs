//! The one-way stream: a sink that counts what arrives, and a sender that writes as fast as it can.
//!
//! Subcommands of this program, run in the server and in the client pod. Blocking sockets and one
//! thread per connection on purpose: nothing here may be the bottleneck's excuse.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const CHUNK_BYTES: usize = 128 * 1024;

/// What the sender prints as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sent {
    /// What the sink has counted: bytes that are still on the way when the sender stops count too, and
    /// so does the time they take.
    pub bytes: u64,
    pub seconds: f64,
}

/// Accepts for ever; each connection is read to its end and answered with the number of bytes (8
/// bytes, big endian).
pub fn sink(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let (mut stream, _) = listener.accept().context("accept")?;
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut bytes = 0u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&bytes.to_be_bytes()),
                    n => bytes += n as u64,
                }
            }
        });
    }
}

/// Writes for `seconds`, closes its half of the connection, and waits for the sink's count.
pub fn send(to: SocketAddr, seconds: u32) -> Result<Sent> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let buffer = vec![b'x'; CHUNK_BYTES];
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds.into());
    let mut written = 0u64;
    while Instant::now() < until {
        stream.write_all(&buffer).with_context(|| format!("writing to {to} after {written} bytes"))?;
        written += buffer.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).context("the sink's count did not come back after the half-close")?;
    let bytes = u64::from_be_bytes(count);
    anyhow::ensure!(bytes == written, "{written} bytes were written and {bytes} arrived");
    Ok(Sent { bytes, seconds: started.elapsed().as_secs_f64() })
}
