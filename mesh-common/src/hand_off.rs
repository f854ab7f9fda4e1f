//! Hand-off: what one application sends goes straight into the other application's queue, the proxy between
//! them only looking on.

/// Directions that can be handed off at a time; a connection has two.
pub const MAX_DIRECTIONS: u32 = 32_768;

/// One direction of a connection between two applications of this node. In memory that the programs and the
/// proxy share: each word is written by one of them only.
///
/// The barrier that keeps the order: a message goes straight only when `forwarded` equals the number of bytes
/// that the sender has given to the proxy ([`crate::accel::End::bytes`]), so that none is on its way there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Direction {
    /// The proxy: key of the sending application's socket in the map of sockets; 0: unused.
    pub sender: u64,
    /// The proxy: key of the receiving application's socket; 0: everything goes through the proxy.
    pub receiver: u64,
    /// The proxy: so many bytes of the sender it has put into the receiver's queue, all of them past TCP.
    pub forwarded: u64,
    /// The programs: what went straight.
    pub bytes: u64,
    pub messages: u64,
    /// The programs: when the last message went straight; monotonic nanoseconds.
    pub last_ns: u64,
    /// The programs: kernel address of the receiver; 0: not known yet.
    pub peer: u64,
    /// The programs: at most so many bytes that went straight wait at the receiver.
    pub waiting: u64,
}

/// Numbers of the words of a [`Direction`].
pub mod word {
    pub const SENDER: usize = 0;
    pub const RECEIVER: usize = 1;
    pub const FORWARDED: usize = 2;
    pub const BYTES: usize = 3;
    pub const MESSAGES: usize = 4;
    pub const LAST_NS: usize = 5;
    pub const COUNT: usize = 8;
}

/// Never the number of bytes of a sender.
pub const NOTHING_FORWARDED: u64 = u64::MAX;
