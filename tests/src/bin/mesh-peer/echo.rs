//! Long-lived connections between event loops, driven turn by turn: what one side sends comes back.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::peer::Turn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sends back what comes, on any number of connections. Prints `listening`.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        println!("listening");
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

/// So many connections; for every line of standard input, a [`Turn`], it is taken on each and `done` is printed,
/// or what went wrong.
pub fn call(to: SocketAddr, connections: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            open.push(stream);
        }
        println!("connected");
        let mut sent = 0_u8;
        // Between turns there is nothing to do.
        for line in std::io::stdin().lines() {
            let turn: Turn = serde_json::from_str(&line?)?;
            sent = sent.wrapping_add(1);
            let mut outcome = Ok(());
            for stream in &mut open {
                outcome = outcome.and(take(turn, stream, sent).await);
            }
            match outcome {
                Ok(()) => println!("done"),
                Err(error) => println!("{error:#}"),
            }
        }
        Ok(())
    })
}

async fn take(turn: Turn, stream: &mut TcpStream, mark: u8) -> Result<()> {
    match turn {
        Turn::Exchange(size) => {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8 ^ mark).collect();
            let (mut reader, mut writer) = stream.split();
            let mut back = vec![0; size];
            let (sent, got) = tokio::join!(writer.write_all(&data), reader.read_exact(&mut back));
            sent.context("sending")?;
            got.context("receiving")?;
            ensure!(back == data, "what came back is not what was sent");
        }
        Turn::HalfClose(size) => {
            stream.write_all(&vec![mark; size]).await.context("sending")?;
            stream.shutdown().await.context("half-closing")?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.context("receiving")?;
            ensure!(back == vec![mark; size], "{} bytes came back of {size}", back.len());
        }
        Turn::Ended => {
            let limit = std::time::Duration::from_secs(20);
            match tokio::time::timeout(limit, stream.read(&mut [0])).await {
                // By an end or by a reset.
                Ok(Ok(0) | Err(_)) => {}
                Ok(Ok(_)) => bail!("there is something to read"),
                Err(_) => bail!("the connection is still open"),
            }
        }
    }
    Ok(())
}
