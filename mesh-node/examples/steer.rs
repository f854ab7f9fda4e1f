//! Steering and nothing else: captures the connections of the pods in a pods file and passes their
//! bytes on to where they were going. To try the kernel's part without a proxy's configuration.
//!
//! `steer SETTINGS.yaml` runs until its standard input ends and prints the counters then;
//! `steer SETTINGS.yaml cleanup` removes what it left.

use std::error::Error;
use std::io::Read;

use mesh_node::capture::{CaptureSource, Captured, Settings, WorkerCapture, cleanup, start};
use mesh_node::model::listener::Direction;
use tokio::net::{TcpSocket, TcpStream};

const WORKERS: usize = 2;

fn main() {
    if let Err(error) = run() {
        eprintln!("steer: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: steer SETTINGS.yaml [cleanup]")?;
    let settings: Settings = serde_yaml_ng::from_str(&std::fs::read_to_string(path)?)?;
    if arguments.next().is_some() {
        println!("{:?}", cleanup(&settings)?);
        return Ok(());
    }
    let (capture, sources) = start(&settings, WORKERS, None)?;
    for (index, source) in sources.into_iter().enumerate() {
        std::thread::spawn(move || worker(index, source));
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for counter in capture.counters() {
        println!("{} {} {} {}", counter.pod, counter.hook, counter.reason, counter.value);
    }
    Ok(())
}

fn worker(index: usize, mut source: WorkerCapture) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        while let Some(captured) = source.accept().await {
            tokio::task::spawn_local(async move {
                let line =
                    format!("{:?} {} -> {}", captured.direction, captured.source, captured.original_dst);
                let end = pass_on(captured).await;
                println!("worker {index}: {line}: {end:?}");
            });
        }
    });
}

async fn pass_on(mut captured: Captured) -> std::io::Result<(u64, u64)> {
    let sockets = &captured.workload.sockets;
    let socket = match captured.direction {
        Direction::Inbound => sockets.to_application(captured.source, captured.original_dst)?,
        _ => sockets.to_network(captured.original_dst, None)?,
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    let mut upstream: TcpStream = socket.connect(captured.original_dst).await?;
    tokio::io::copy_bidirectional(&mut captured.io, &mut upstream).await
}
