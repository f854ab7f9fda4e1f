//! What the node tells about itself: statistics, access logs, and the per-stream facts they are made of.

pub mod access_log;
pub mod format;
pub mod log_file;
pub mod response_flags;
pub mod stats;
pub mod stream_info;
mod time;
