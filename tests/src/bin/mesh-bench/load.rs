//! The load generators: what is run in the client pod, and how its report is read.
//!
//! Exists to turn wrk, h2load and the bulk sender into one [`Sample`]. A run in which a single request
//! failed is an error and not a figure.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use mesh_tests::netns::Pod;
use mesh_tests::process;

use crate::bulk::Sent;
use crate::results::{Latency, Sample};
use crate::rows::{Load, Row, SMALL};
use crate::servers::Port;
use crate::usage::{self, Usage};

/// Makes load from client pods; holds the files that the generators need.
pub struct Generator {
    script: PathBuf,
    grpc_request: PathBuf,
    log: PathBuf,
}

/// wrk prints percentiles to three digits and not the 99.9th; its script interface has all.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"bytes":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"p50":%f,"p90":%f,"p99":%f,"p999":%f}\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// The line that [`WRK_SCRIPT`] prints.
#[derive(Debug, Deserialize)]
struct WrkReport {
    requests: u64,
    duration_us: u64,
    bytes: u64,
    connect: u64,
    read: u64,
    write: u64,
    status: u64,
    timeout: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
}

impl Generator {
    /// `folder` must exist; files in it stay as long as the generator is used.
    pub fn new(folder: &FilePath) -> Result<Generator> {
        let generator = Generator {
            script: folder.join("report.lua"),
            grpc_request: folder.join("grpc-request"),
            log: folder.join("h2load.log"),
        };
        fs::write(&generator.script, WRK_SCRIPT).context("cannot write wrk's script")?;
        fs::write(&generator.grpc_request, grpc_message()).context("cannot write the gRPC request")?;
        Ok(generator)
    }

    /// One run of `row` for `seconds` from `client` to the server at `address`; `proxies` are the
    /// processes whose use of the machine is noted.
    pub fn run(
        &self,
        row: &Row,
        client: &Pod,
        address: Ipv4Addr,
        proxies: &[u32],
        seconds: u32,
    ) -> Result<Sample> {
        let before = Usage::of(proxies)?;
        let (mut sample, requests) = match row.load {
            Load::Http1 => self.wrk(row, client, address, seconds, false)?,
            Load::NewConnections => self.wrk(row, client, address, seconds, true)?,
            Load::Http2 { streams } => {
                let url = format!("http://{address}:{}{}", Port::Http2.number(), row.path());
                self.h2load(row, client, &[&url], streams, seconds)?
            }
            Load::Grpc { streams } => {
                let url = format!("http://{address}:{}/bench.Echo/Call", Port::Grpc.number());
                let request = self.grpc_request.to_string_lossy();
                let args =
                    ["-d", &request, "-H", "content-type: application/grpc", "-H", "te: trailers", &url];
                self.h2load(row, client, &args, streams, seconds)?
            }
            Load::Bulk => bulk(client, address, seconds)?,
        };
        if !proxies.is_empty() {
            let used = Usage::of(proxies)?.since(before);
            if requests > 0 {
                sample.proxy_cpu_s_per_10k = Some(used.cpu_s * 10_000.0 / requests as f64);
                sample.context_switches_per_request = Some(used.context_switches as f64 / requests as f64);
            }
            sample.proxy_rss_mib = Some(usage::rss_mib(proxies)?);
        }
        Ok(sample)
    }

    fn wrk(
        &self,
        row: &Row,
        client: &Pod,
        address: Ipv4Addr,
        seconds: u32,
        close: bool,
    ) -> Result<(Sample, u64)> {
        let mut command = Command::new("wrk");
        command.args([
            "-t1",
            &format!("-c{}", row.connections),
            &format!("-d{seconds}s"),
            "--timeout",
            "10s",
        ]);
        command.arg("-s").arg(&self.script);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://{address}:{}{}", Port::Http1.number(), row.path()));
        let output = client.tool(command)?;
        let report: WrkReport = output
            .lines()
            .find_map(|line| line.strip_prefix("RESULT "))
            .with_context(|| format!("wrk printed no result: {output}"))
            .and_then(|line| {
                serde_json::from_str(line).context("wrk's result is not as its script writes it")
            })?;
        // With `Connection: close`, wrk counts the end of a connection that it saw before its answer
        // was complete as a read error; complete answers are what is counted as requests.
        let failures = report.connect + report.read + report.write + report.status + report.timeout;
        ensure!(failures == 0, "{failures} of {} requests failed: {report:?}", report.requests);
        ensure!(report.requests > 0, "no request was answered");
        ensure!(
            report.bytes >= report.requests * u64::from(row.payload_bytes),
            "answers are shorter than {} bytes: {report:?}",
            row.payload_bytes
        );
        let sample = Sample {
            requests_per_s: Some(report.requests as f64 * 1e6 / report.duration_us as f64),
            latency_us: Some(Latency {
                p50: report.p50,
                p90: report.p90,
                p99: report.p99,
                p999: report.p999,
            }),
            ..Sample::default()
        };
        Ok((sample, report.requests))
    }

    fn h2load(
        &self,
        row: &Row,
        client: &Pod,
        target: &[&str],
        streams: u32,
        seconds: u32,
    ) -> Result<(Sample, u64)> {
        fs::remove_file(&self.log).ok();
        let mut command = Command::new("h2load");
        command.args([
            "-t1",
            &format!("-c{}", row.connections),
            &format!("-m{streams}"),
            &format!("-D{seconds}"),
            &format!("--log-file={}", self.log.display()),
        ]);
        command.args(target);
        let output = client.tool(command)?;
        let log = fs::read_to_string(&self.log).context("h2load wrote no log")?;
        let (sample, requests) = read_h2load(&output, &log, seconds)?;
        fs::remove_file(&self.log).ok();
        Ok((sample, requests))
    }
}

impl Row {
    fn path(&self) -> String {
        format!("/{}", self.payload_bytes)
    }
}

/// An uncompressed message with its length before it, [`SMALL`] bytes together.
fn grpc_message() -> Vec<u8> {
    let length = SMALL - 5;
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.resize(SMALL as usize, b'x');
    message
}

/// h2load's summary has no percentiles; its log has start, status and time in µs of each request.
fn read_h2load(output: &str, log: &str, seconds: u32) -> Result<(Sample, u64)> {
    let mut times = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t');
        let (Some(_start), Some(status), Some(time)) = (fields.next(), fields.next(), fields.next()) else {
            bail!("a line of h2load's log is not start, status, time: {line}");
        };
        // Streams that the end of the run cut off have the status -1.
        if status == "-1" {
            continue;
        }
        ensure!(status == "200", "a request was answered with status {status}");
        times.push(time.parse::<f64>().with_context(|| format!("h2load's log: {line}"))?);
    }
    ensure!(!times.is_empty(), "h2load finished no request: {output}");
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    let sample = Sample {
        requests_per_s: Some(times.len() as f64 / f64::from(seconds)),
        latency_us: Some(Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) }),
        ..Sample::default()
    };
    Ok((sample, times.len() as u64))
}

fn bulk(client: &Pod, address: Ipv4Addr, seconds: u32) -> Result<(Sample, u64)> {
    let mut command = Command::new(process::binary("mesh-bench")?);
    command.args(["bulk-send", &format!("{address}:{}", Port::Bulk.number()), &seconds.to_string()]);
    let sent: Sent = serde_json::from_str(&client.tool(command)?).context("the bulk sender's report")?;
    let gbit_per_s = sent.bytes as f64 * 8.0 / sent.seconds / 1e9;
    Ok((Sample { gbit_per_s: Some(gbit_per_s), ..Sample::default() }, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_http2_request_fails_the_run() {
        assert!(read_h2load("", "1\t503\t10\n", 1).is_err());
        let (sample, requests) = read_h2load("", "1\t200\t10\n2\t200\t30\n3\t-1\t99\n", 1).unwrap();
        assert_eq!((requests, sample.requests_per_s), (2, Some(2.0)));
        assert_eq!(sample.latency_us.unwrap().p99, 30.0);
    }
}
