//! `/memory`: what the kernel says of this process. The allocator is not asked.

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

pub fn page(_: &dyn AdminState, _: &Query) -> Reply {
    Reply::json(&serde_json::json!({
        "allocated": field("RssAnon").to_string(),
        "heap_size": field("VmData").to_string(),
        "total_physical_bytes": resident_bytes().to_string(),
    }))
}

/// Resident memory of the process.
pub fn resident_bytes() -> u64 {
    field("VmRSS")
}

/// A field of `/proc/self/status` in bytes; 0 where there is none.
fn field(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
