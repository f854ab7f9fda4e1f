//! One connection: a single exchange, or a session driven from standard input.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use mesh_tests::peer::{Call, Failure};
use socket2::{Domain, Protocol, Socket, Type};

#[derive(Args)]
pub struct CallArgs {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    bind: Option<SocketAddr>,
    #[arg(long)]
    mark: Option<u32>,
    #[arg(long)]
    mapped: bool,
    #[arg(long)]
    server_first: bool,
    #[arg(long)]
    server_closes: bool,
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

/// Calls once; every outcome is a report.
pub fn call(args: &CallArgs) -> Call {
    let mut report = Call { local: None, peer: None, server: None, failure: None };
    if let Err(failure) = exchange(args, &mut report) {
        report.failure = Some(failure);
    }
    report
}

fn exchange(args: &CallArgs, report: &mut Call) -> Result<(), Failure> {
    let limit = Duration::from_millis(args.timeout_ms);
    let mut stream = connect(args, limit)?;
    report.local = stream.local_addr().ok();
    report.peer = stream.peer_addr().ok();
    stream.set_read_timeout(Some(limit)).map_err(at("receive"))?;
    stream.set_write_timeout(Some(limit)).map_err(at("send"))?;
    let mut reading = BufReader::new(stream.try_clone().map_err(at("receive"))?);
    if !args.server_first {
        stream.write_all(b"who\n").map_err(at("send"))?;
    }
    let line = read_line(&mut reading)?;
    let seen = serde_json::from_str(&line);
    report.server = Some(seen.map_err(|error| unexpected("receive", format!("{error} in {line:?}")))?);
    if args.server_closes {
        stream.write_all(b"close\n").map_err(at("send"))?;
        match read_line(&mut reading) {
            Err(failure) if failure.errno.is_none() => {}
            other => return Err(unexpected("receive", format!("no end of file: {other:?}"))),
        }
    }
    Ok(())
}

fn connect(args: &CallArgs, limit: Duration) -> Result<TcpStream, Failure> {
    let to = match args.to.ip() {
        IpAddr::V4(v4) if args.mapped => {
            SocketAddr::V6(SocketAddrV6::new(v4.to_ipv6_mapped(), args.to.port(), 0, 0))
        }
        _ => args.to,
    };
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).map_err(at("socket"))?;
    if to.is_ipv6() {
        socket.set_only_v6(false).map_err(at("socket"))?;
    }
    if let Some(mark) = args.mark {
        socket.set_mark(mark).map_err(at("mark"))?;
    }
    if let Some(bind) = args.bind {
        socket.set_reuse_address(true).map_err(at("bind"))?;
        socket.bind(&bind.into()).map_err(at("bind"))?;
    }
    socket.connect_timeout(&to.into(), limit).map_err(at("connect"))?;
    let stream: TcpStream = socket.into();
    stream.set_nodelay(true).map_err(at("connect"))?;
    Ok(stream)
}

fn read_line(reading: &mut impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    match reading.read_line(&mut line).map_err(at("receive"))? {
        0 => Err(unexpected("receive", "end of file".to_owned())),
        _ => Ok(line),
    }
}

fn at(stage: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure { stage: stage.to_owned(), errno: error.raw_os_error(), text: error.to_string() }
}

fn unexpected(stage: &str, text: String) -> Failure {
    Failure { stage: stage.to_owned(), errno: None, text }
}

/// Prints `connected`, then an answer for each line of standard input, then how the connection ended.
pub fn session(to: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    println!("connected");
    let mut writing = stream.try_clone()?;
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if writing.write_all(format!("{line}\n").as_bytes()).is_err() {
                return;
            }
        }
        writing.shutdown(std::net::Shutdown::Write).ok();
    });
    for line in BufReader::new(stream).lines() {
        match line {
            Ok(line) => println!("> {line}"),
            Err(error) => {
                println!("error: {error}");
                return Ok(());
            }
        }
    }
    println!("end of file");
    Ok(())
}
