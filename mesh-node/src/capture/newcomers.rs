//! Hears from the kernel that a pod which nobody knows has made a connection, which is held meanwhile.
//!
//! It only says that there is one: who it is, is found out by those who know the pods.

use std::os::fd::AsFd;
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use super::programs::Programs;

/// Reads on a thread of its own for as long as the process lives; `came` is notified.
///
/// # Errors
/// With the reason, if nothing can be heard.
pub(super) fn follow(programs: &mut Programs, came: Arc<Notify>) -> Result<(), String> {
    let mut news: RingBuf<MapData> = programs.news()?;
    let reading = move || {
        loop {
            let mut any = false;
            while news.next().is_some() {
                any = true;
            }
            if any {
                came.notify_one();
            }
            match poll(&mut [PollFd::new(news.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    };
    let thread = std::thread::Builder::new().name("newcomers".to_owned()).spawn(reading);
    thread.map(drop).map_err(|error| error.to_string())
}
