//! Brings the log lines of the kernel programs into this process's own, at debug.

use std::os::fd::AsRawFd;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Takes lines from aya-log and gives them to tracing.
#[derive(Debug)]
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "mesh_ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Reads lines on a thread of its own for as long as the process lives.
pub(super) fn follow(node: &mut Ebpf) {
    let mut logger = match EbpfLogger::init_with_logger(node, ToTracing) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::debug!("kernel log lines are not available: {error}");
            return;
        }
    };
    let reading = move || {
        loop {
            // SAFETY: the descriptor lives as long as `logger`, which this closure owns.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(logger.as_raw_fd()) };
            let mut ready = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            match nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => logger.flush(),
                Err(_) => return,
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kernel-log".to_owned()).spawn(reading) {
        tracing::debug!("kernel log lines are not available: {error}");
    }
}
