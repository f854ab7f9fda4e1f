//! Many connections at once, or one after the other, and how many of their exchanges failed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::peer::Tally;
use socket2::{Domain, Protocol, Socket, Type};

const LIMIT: Duration = Duration::from_secs(20);
const REPORTED_ERRORS: usize = 5;
const CHURN_THREADS: usize = 4;

#[derive(Default)]
struct Outcome {
    exchanges: AtomicU64,
    failed: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Outcome {
    fn count(&self, result: Result<()>) -> bool {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        let Err(error) = result else { return true };
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut errors) = self.errors.lock()
            && errors.len() < REPORTED_ERRORS
        {
            errors.push(format!("{error:#}"));
        }
        false
    }

    fn print(self) -> Result<()> {
        let tally = Tally {
            exchanges: self.exchanges.into_inner(),
            failed: self.failed.into_inner(),
            cut: 0,
            errors: self.errors.into_inner().unwrap_or_default(),
        };
        println!("{}", serde_json::to_string(&tally)?);
        Ok(())
    }
}

/// Prints `running` once all connections have done an exchange, and the tally after the end of standard
/// input.
pub fn hold(to: SocketAddr, connections: usize, pause: Duration) -> Result<()> {
    let outcome = Outcome::default();
    let stop = AtomicBool::new(false);
    let open = (0..connections)
        .map(|i| {
            let mut connection = Exchanger::connect(to).with_context(|| format!("connection {i}"))?;
            connection.echo().with_context(|| format!("connection {i}"))?;
            Ok(connection)
        })
        .collect::<Result<Vec<_>>>()?;
    println!("running");
    std::thread::scope(|scope| {
        for mut connection in open {
            let (outcome, stop) = (&outcome, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if !outcome.count(connection.echo()) {
                        return; // a broken connection fails once
                    }
                    std::thread::sleep(pause); // the pace of the load, not a wait
                }
            });
        }
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        stop.store(true, Ordering::Relaxed);
    });
    outcome.print()
}

/// What a hoarding connection asks for; no kernel keeps so much for one that does not read.
const HOARDED_BYTES: usize = 64 << 20;

/// Prints `running` once all connections were opened, whether or not they were refused at once. They end with
/// standard input.
pub fn hoard(to: SocketAddr, connections: usize) -> Result<()> {
    let mut open = Vec::new();
    for i in 0..connections {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        // Little is with the kernel here, so that it is the other side that has to hold something.
        socket.set_recv_buffer_size(4096)?;
        let connected = socket.connect_timeout(&to.into(), LIMIT);
        let mut stream = TcpStream::from(socket);
        let asked = connected.and_then(|()| stream.write_all(format!("bytes {HOARDED_BYTES}\n").as_bytes()));
        match asked {
            Ok(()) => open.push(stream),
            Err(error) if refused(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("connection {i}")),
        }
    }
    println!("running");
    std::io::stdin().read_to_end(&mut Vec::new()).ok();
    Ok(())
}

fn refused(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset)
}

/// Opens, uses and closes `count` connections, over the targets in turn.
pub fn churn(to: &[SocketAddr], count: u64) -> Result<()> {
    let outcome = Outcome::default();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CHURN_THREADS {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return;
                    }
                    let target = to[(turn % to.len() as u64) as usize];
                    outcome.count(Exchanger::connect(target).and_then(|mut c| c.echo()));
                }
            });
        }
    });
    outcome.print()
}

struct Exchanger {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Exchanger {
    fn connect(to: SocketAddr) -> Result<Exchanger> {
        let stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Exchanger { stream: BufReader::new(stream), line: String::new() })
    }

    fn echo(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(b"ping\n").context("send")?;
        self.line.clear();
        self.stream.read_line(&mut self.line).context("receive")?;
        anyhow::ensure!(self.line == "ping\n", "unexpected answer {:?}", self.line);
        Ok(())
    }
}
