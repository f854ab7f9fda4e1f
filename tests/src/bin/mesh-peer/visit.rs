//! A visitor of an HTTP server, as a pod's only act or as a steady load: one new connection for each request, blocking
//! sockets, no retries. It says what failed and why, and which answers went through the mesh, known by a header that
//! the mesh adds.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

const LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct VisitArgs {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value = "/")]
    path: String,
    /// Visits, and then the end; without it until the end of standard input, each line of which asks for the tally
    #[arg(long)]
    count: Option<u64>,
    /// Visitors at a time
    #[arg(long, default_value_t = 1)]
    at_a_time: u32,
    /// Between the visits of one visitor
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Counts the answers that have this header: `name`, or `name:value`
    #[arg(long)]
    header: Option<String>,
}

#[derive(Default, Serialize)]
struct Tally {
    visits: u64,
    failed: u64,
    /// Answers with the header.
    carried: u64,
    first_us: u64,
    slowest_us: u64,
    errors: BTreeMap<String, u64>,
}

/// # Errors
/// When a counted visit has failed.
pub fn visit(args: &VisitArgs) -> Result<()> {
    let (tally, stop) = (Mutex::<Tally>::default(), AtomicBool::new(false));
    let told = || serde_json::to_string(&*tally.lock().unwrap_or_else(PoisonError::into_inner));
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..args.at_a_time {
            scope.spawn(|| {
                for _ in 0..args.count.unwrap_or(u64::MAX) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    once(args, &tally);
                    std::thread::sleep(Duration::from_millis(args.pause_ms)); // the pace of the load
                }
            });
        }
        if args.count.is_none() {
            for _ in std::io::stdin().lines().map_while(Result::ok) {
                println!("{}", told()?);
            }
            stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    })?;
    println!("{}", told()?);
    let failed = tally.lock().unwrap_or_else(PoisonError::into_inner).failed;
    ensure!(args.count.is_none() || failed == 0, "{failed} visits failed");
    Ok(())
}

fn once(args: &VisitArgs, tally: &Mutex<Tally>) {
    let begun = Instant::now();
    let outcome = request(args);
    let took = begun.elapsed().as_micros() as u64;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.visits += 1;
    if tally.visits == 1 {
        tally.first_us = took;
    }
    tally.slowest_us = tally.slowest_us.max(took);
    match outcome {
        Ok(carried) => tally.carried += u64::from(carried),
        Err(reason) => {
            tally.failed += 1;
            *tally.errors.entry(reason).or_default() += 1;
        }
    }
}

/// Whether the answer has the header, or why there is no good answer.
fn request(args: &VisitArgs) -> Result<bool, String> {
    let named = |step: &'static str| move |error: std::io::Error| format!("{step}: {}", error.kind());
    let mut stream = TcpStream::connect_timeout(&args.to, LIMIT).map_err(named("connect"))?;
    stream.set_read_timeout(Some(LIMIT)).map_err(named("read"))?;
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", args.path, args.to);
    stream.write_all(request.as_bytes()).map_err(named("write"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(named("read"))?;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return Err("no whole answer".to_owned()) };
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    if status != "200" {
        return Err(format!("status {status}"));
    }
    // `name`, or `name:value`.
    let has = |header: &String| {
        let (wanted, value) =
            header.split_once(':').map_or((&**header, None), |(name, value)| (name, Some(value)));
        lines.filter_map(|line| line.split_once(':')).any(|(name, is)| {
            name.eq_ignore_ascii_case(wanted) && value.is_none_or(|value| value == is.trim())
        })
    };
    Ok(args.header.as_ref().is_some_and(has))
}
