//! What the proxies of a path used: processor time, context switches, memory.
//!
//! Read from `/proc` only, so that it works the same for any proxy; it must not disturb the run.

use std::fs;

use anyhow::{Context, Result};

/// Units of the times in `/proc/PID/stat`: USER_HZ, which is 100 on every Linux architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Totals since the processes began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub context_switches: u64,
}

impl Usage {
    /// Sum over the processes and all of their threads.
    pub fn of(pids: &[u32]) -> Result<Usage> {
        let mut total = Usage::default();
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("the proxy with pid {pid} is gone"))?;
            total.cpu_s +=
                cpu_ticks(&stat).context("cannot read utime and stime of /proc/PID/stat")? / TICKS_PER_SECOND;
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                // A thread that ends while we look has no file any more.
                let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
                total.context_switches += number(&status, "voluntary_ctxt_switches:")
                    + number(&status, "nonvoluntary_ctxt_switches:");
            }
        }
        Ok(total)
    }

    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_s: self.cpu_s - earlier.cpu_s,
            context_switches: self.context_switches.saturating_sub(earlier.context_switches),
        }
    }
}

/// Resident memory of the processes, in MiB.
pub fn rss_mib(pids: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("the proxy with pid {pid} is gone"))?;
        kib += number(&status, "VmRSS:");
    }
    Ok(kib as f64 / 1024.0)
}

/// `utime + stime`, fields 14 and 15; the name in field 2 may contain spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let utime: f64 = fields.nth(11)?.parse().ok()?;
    let stime: f64 = fields.next()?.parse().ok()?;
    Some(utime + stime)
}

fn number(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_a_parenthesis_does_not_shift_the_fields() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 100";
        assert_eq!(cpu_ticks(stat), Some(100.0));
    }
}
