//! Servers that report the addresses of each connection.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;

use anyhow::{Context, Result};
use mesh_tests::peer::Seen;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::Mode;

/// What `bytes N` sends, again and again.
static PAYLOAD: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// Serves until the process is killed.
pub fn serve(listen: &[SocketAddr], name: &str, mode: Mode) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let name: Rc<str> = name.into();
        let mut accepting = Vec::new();
        for address in listen {
            let listener = tokio::net::TcpListener::from_std(listener(*address)?)?;
            let name = name.clone();
            accepting.push(tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let name = name.clone();
                    // A connection that the client gives up is no failure of the server.
                    tokio::task::spawn_local(async move { connection(stream, &name, mode).await.ok() });
                }
            }));
        }
        println!("listening");
        for task in accepting {
            task.await?;
        }
        anyhow::bail!("a listener ended")
    })
}

/// A listener for both families if the address is `[::]`.
fn listener(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn connection(stream: TcpStream, name: &str, mode: Mode) -> Result<()> {
    let seen = Seen {
        name: name.to_owned(),
        local: unmapped(stream.local_addr()?),
        peer: unmapped(stream.peer_addr()?),
    };
    let seen = serde_json::to_string(&seen)?;
    stream.set_nodelay(true)?;
    match mode {
        Mode::Http => http(stream, &seen).await,
        Mode::Report => lines(stream, &seen).await,
        Mode::First => {
            let mut stream = stream;
            stream.write_all(format!("{seen}\n").as_bytes()).await?;
            lines(stream, &seen).await
        }
    }
}

/// Commands, one per line: `who`, `close` (the server closes first), `bytes N`; other lines are
/// echoed. At the client's end of file the number of received bytes is the last answer.
async fn lines(stream: TcpStream, seen: &str) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let received = Cell::new(0usize);
    let mut line = String::new();
    loop {
        line.clear();
        let read = reading.read_line(&mut line).await?;
        if read == 0 {
            writing.write_all(format!("received {}\n", received.get()).as_bytes()).await?;
            return Ok(());
        }
        received.set(received.get() + read);
        let command = line.trim_end();
        if command == "who" {
            writing.write_all(format!("{seen}\n").as_bytes()).await?;
        } else if command == "close" {
            return Ok(());
        } else if let Some(count) = command.strip_prefix("bytes ") {
            let mut left = count.parse::<usize>()?;
            while left > 0 {
                let piece = left.min(PAYLOAD.len());
                writing.write_all(&PAYLOAD[..piece]).await?;
                left -= piece;
            }
            writing.write_all(b"\n").await?;
        } else {
            writing.write_all(line.as_bytes()).await?;
        }
    }
}

/// HTTP/1.1 without bodies in requests: enough to be probed and to tell who asked.
async fn http(mut stream: TcpStream, seen: &str) -> Result<()> {
    let mut head = Vec::new();
    loop {
        while !head.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let close = text.contains("connection: close");
        head.clear();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{seen}",
            seen.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        if close {
            return Ok(());
        }
    }
}

/// IPv4-mapped addresses as IPv4, so that tests compare what a user reads in a log.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
