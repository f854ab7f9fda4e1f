//! What a connection has received and nobody has taken yet, counted for its workload.
//!
//! `h2` queues the data of each stream up to its window. Here the frames are watched as they are read: DATA counts
//! from its frame's header on, and until a stream's reader takes it or goes. Near the workload's limit the
//! connection's window shrinks, so that its peers send less ahead; frames that are no data are read as ever, because
//! what we send waits for some of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::budget::{Held, Purse};
use crate::http::metered::Meter;

/// Length of a frame's header, and the type of DATA (RFC 9113 section 4.1 and 6.1).
const HEADER: usize = 9;
const DATA: u8 = 0;
/// A connection's own cost, which goes uncounted.
const FIXED_BYTES: usize = 16 << 10;
/// The connection's window near the limit. HTTP/2 begins with this one.
const SMALL_WINDOW: u32 = (1 << 16) - 1;

/// The received data of one connection.
#[derive(Debug)]
pub(super) struct Backlog {
    scan: RefCell<Scan>,
    unread: Cell<usize>,
    held: Held,
    /// Bodies that may still take something.
    streams: Cell<u32>,
    small: Cell<bool>,
}

impl Backlog {
    /// `preface`: bytes that come before the first frame.
    pub(super) fn new(purse: Option<Rc<Purse>>, preface: usize) -> Rc<Self> {
        Rc::new(Self {
            scan: RefCell::new(Scan { skip: preface, ..Scan::default() }),
            unread: Cell::new(0),
            held: Held::new(purse),
            streams: Cell::new(0),
            small: Cell::new(false),
        })
    }

    /// These bytes were read off the connection.
    pub(super) fn received(&self, bytes: &[u8]) {
        if self.held.purse().is_some() {
            let data = self.scan.borrow_mut().data_in(bytes);
            self.set(self.unread.get() + data);
        }
    }

    pub(super) fn begin_body(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    /// A body took data.
    pub(super) fn taken(&self, bytes: usize) {
        self.set(self.unread.get().saturating_sub(bytes));
    }

    /// A body goes, with this much that it has not taken. What comes for it later counts until no body is left.
    pub(super) fn end_body(&self, untaken: usize) {
        self.taken(untaken);
        self.streams.set(self.streams.get() - 1);
        if self.streams.get() == 0 {
            self.set(0);
        }
    }

    /// The window that the connection must have from now on, if that changes; `full` is its usual one.
    pub(super) fn new_window(&self, full: u32) -> Option<u32> {
        let small = self.held.is_pressed();
        (self.small.replace(small) != small).then_some(if small { SMALL_WINDOW.min(full) } else { full })
    }

    fn set(&self, unread: usize) {
        self.unread.set(unread);
        self.held.set(unread.saturating_sub(FIXED_BYTES));
    }
}

impl Meter for Rc<Backlog> {
    fn on_read(&self, bytes: &[u8]) {
        self.received(bytes);
    }

    fn on_written(&self, _: usize) {}
}

/// Where in the frames the next byte is.
#[derive(Debug, Default)]
struct Scan {
    header: [u8; HEADER],
    have: usize,
    skip: usize,
}

impl Scan {
    /// How much data the frames bring that begin in `bytes`.
    fn data_in(&mut self, mut bytes: &[u8]) -> usize {
        let mut data = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let length = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + length].copy_from_slice(&bytes[..length]);
            self.have += length;
            bytes = &bytes[length..];
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, kind, ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                data += if kind == DATA { self.skip } else { 0 };
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::Budget;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER + length, 7);
        frame
    }

    #[test]
    fn data_counts_however_its_frames_are_cut_and_nothing_else_does() {
        let bytes =
            [vec![b'P'; 24], frame(4, 30), frame(0, 500), frame(1, 0), frame(0, 0), frame(0, 20)].concat();
        for size in [1, 2, 7, 100, bytes.len()] {
            let mut scan = Scan { skip: 24, ..Scan::default() };
            assert_eq!(bytes.chunks(size).map(|part| scan.data_in(part)).sum::<usize>(), 520, "{size}");
        }
    }

    #[test]
    fn near_the_limit_the_window_is_small_and_what_bodies_leave_does_not_count_for_ever() {
        let budget = Arc::new(Budget::new("ns/pod", 1 << 20));
        let purse = Purse::of(&budget);
        let backlog = Backlog::new(Some(purse.clone()), 0);
        backlog.begin_body();
        for _ in 0..60 {
            backlog.received(&frame(0, 16_000));
        }
        assert_eq!(purse.used(), 960_000 - FIXED_BYTES);
        assert_eq!(backlog.new_window(4 << 20), Some(SMALL_WINDOW));
        assert_eq!(backlog.new_window(4 << 20), None);
        backlog.taken(500_000);
        assert_eq!(backlog.new_window(4 << 20), Some(4 << 20));
        // Padding and late frames were never anybody's.
        backlog.end_body(400_000);
        assert_eq!(purse.used(), 0);
    }
}
