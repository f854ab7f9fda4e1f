//! What the run was made on: machine and versions, for the head of the results file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context, Result};

/// Now, in UTC, RFC 3339.
pub fn date() -> Result<String> {
    output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).context("cannot run `date`")
}

/// Processor, number of cores, memory, kernel; what cannot be read is absent.
pub fn describe() -> BTreeMap<String, String> {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let mut machine = BTreeMap::new();
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            machine.insert(key.to_owned(), value);
        }
    };
    add("processor", field("/proc/cpuinfo", "model name"));
    add("cores", std::thread::available_parallelism().ok().map(|n| n.to_string()));
    add("memory", field("/proc/meminfo", "MemTotal"));
    add("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()));
    machine
}

/// Versions of everything that is compared; a program that is not installed is absent.
pub fn versions(envoy: Option<&FilePath>) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            versions.insert(name.to_owned(), value);
        }
    };
    let word = |text: String, number: usize| text.split_whitespace().nth(number).map(str::to_owned);
    let envoy = envoy.and_then(|envoy| output(&envoy.to_string_lossy(), &["--version"]));
    // PATH  version: REVISION/1.40.0/Clean/RELEASE/BoringSSL; the path has slashes too.
    let envoy = envoy.and_then(|text| word(text, 2));
    add("envoy", envoy.and_then(|text| text.split('/').nth(1).map(str::to_owned)));
    add("haproxy", output("haproxy", &["-v"]).and_then(|text| word(text, 2)));
    add("nginx", output("nginx", &["-v"]).and_then(|text| text.split('/').nth(1).map(str::to_owned)));
    add("wrk", output("wrk", &["-v"]).and_then(|text| word(text, 1)));
    add(
        "h2load",
        output("h2load", &["--version"]).and_then(|text| text.split('/').nth(1).map(str::to_owned)),
    );
    add("mesh-node", output("git", &["describe", "--always", "--dirty"]));
    versions
}

/// The first line that a program prints, on either stream; some exit with an error after their version.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
