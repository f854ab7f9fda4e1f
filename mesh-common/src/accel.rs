//! What acceleration keeps: the two ends of a flow, what is known of the owners of applications' sockets,
//! and where the running kernel has the fields that the programs read.

use crate::Address;

/// Sockets that can be accelerated at a time.
pub const MAX_ENDS: u32 = 131_072;

/// Owners that are known at a time; the ones not met for longest are learned again.
pub const MAX_OWNERS: u32 = 16_384;

/// Connections of one owner that must have been seen, all non-blocking, before the next is accelerated.
pub const ENOUGH_SEEN: u32 = 3;

/// A direction that has had this many bytes waiting at its reader goes back to TCP at the next moment that
/// nothing waits: streams are TCP's business.
pub const STREAM_BYTES: u64 = 64 * 1024;

/// Most bytes that may wait at a reader.
pub const MAX_WAITING_BYTES: u64 = 256 * 1024;

/// Whose sockets these are, as far as the kernel tells before a socket is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OwnerKey {
    /// Device and inode of an executable, or a listening port.
    pub id: u64,
    pub slot: u32,
    /// One of [`role`].
    pub role: u32,
}

pub mod role {
    /// An executable, as a client.
    pub const CLIENT: u32 = 0;
    /// A listening port.
    pub const SERVER: u32 = 1;
    /// The pod as a whole.
    pub const POD: u32 = 2;
}

/// What was seen of an owner's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// Connections whose socket was non-blocking and had nothing that forbids acceleration.
    pub seen: u32,
    /// A [`crate::reason`] for which no socket of this owner is ever accelerated; 0: none.
    pub never: u32,
}

/// A TCP connection, the same from both ends and in every namespace: its addresses, and the numbers that
/// both ends drew at random for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PairKey {
    pub connecting: Address,
    pub accepting: Address,
    pub connecting_port: u16,
    pub accepting_port: u16,
    pub connecting_seq: u32,
    pub accepting_seq: u32,
}

/// What the connecting end leaves for the accepting end.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pair {
    pub owner: OwnerKey,
    /// Key of the flow; 0: only its application's end is to be observed.
    pub flow: u64,
    /// Kernel address and cookie of the connecting socket.
    pub socket: u64,
    pub cookie: u64,
    /// [`way`] of what the connecting end sends.
    pub way: u32,
    pub reserved: u32,
}

/// Who sends to whom.
pub mod way {
    pub const TO_PROXY: u32 = 1;
    pub const TO_APPLICATION: u32 = 2;
    pub const BETWEEN_PROXIES: u32 = 3;
}

/// One end of a flow, in its socket's storage. Written by the sender of the direction only.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct End {
    pub owner: OwnerKey,
    /// Key of this end in the map of sockets; the other end's differs in the lowest bit.
    pub key: u64,
    /// Kernel address and cookie of the other end; 0: not known yet.
    pub peer: u64,
    pub peer_cookie: u64,
    /// Kernel address of this end.
    pub own: u64,
    /// At most so many bytes wait at the other end.
    pub waiting: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Which direction of any flow had last been switched to TCP when this end was put among the accelerated ones.
    pub joined: u64,
    /// One of [`state`].
    pub state: u32,
    /// One of [`way`].
    pub way: u32,
    /// The sequence number of the first byte, by which is told that none was sent before.
    pub first_seq: u32,
    /// 1: to TCP when nothing waits.
    pub leaving: u32,
    /// Both ends' first numbers, in the order of [`PairKey`].
    pub connecting_seq: u32,
    pub accepting_seq: u32,
    /// Number of the [`crate::hand_off::Direction`] that begins here; 0: not known.
    pub direction: u32,
    /// 1: the last message went straight to the other application.
    pub straight: u32,
}

pub mod state {
    /// Not accelerated; what the socket is like is to be learned.
    pub const OBSERVED: u32 = 0;
    /// The same, and something was learned.
    pub const LEARNED: u32 = 1;
    /// No byte has been sent.
    pub const CLEAN: u32 = 2;
    /// Bytes go past TCP.
    pub const ACCELERATED: u32 = 3;
    /// Bytes go by TCP, for good.
    pub const TCP: u32 = 4;
    /// A client's socket that is not connected yet.
    pub const CONNECTING: u32 = 5;
}

/// What went past TCP in one pod, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Carried {
    pub messages: u64,
    pub bytes: u64,
}

/// Offsets in bytes of the running kernel's structures, from its type information. Programs written in Rust
/// cannot have them relocated by the loader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    pub sock_socket: u32,
    pub sock_user_data: u32,
    pub sock_low_watermark: u32,
    pub sock_flags: u32,
    pub sock_cookie: u32,
    pub sock_net: u32,
    pub socket_file: u32,
    pub socket_sock: u32,
    pub file_flags: u32,
    pub file_inode: u32,
    pub inode_number: u32,
    pub inode_super_block: u32,
    pub super_block_device: u32,
    pub psock_queue: u32,
    pub message_list: u32,
    pub message_size: u32,
    pub protocol_above: u32,
    pub write_seq: u32,
    pub message_receiver: u32,
    pub message_start: u32,
    pub net_cookie: u32,
    pub task_memory: u32,
    pub memory_executable: u32,
    pub task_flags: u32,
    /// Of the number of the system call among the registers that a task came into the kernel with; 0: not known for
    /// this processor.
    pub registers_call: u32,
    /// The number of `splice(2)`.
    pub splice_call: u32,
    /// The proxy's process, as the kernel numbers it.
    pub own_process: u32,
    /// Number of the bit in the socket's flags that asks for completions of sends without copy.
    pub zerocopy_bit: u32,
    /// 1: filled.
    pub known: u32,
}

/// What the program says that looks at what went past TCP and waits at a socket.
pub mod waits {
    pub const SOMETHING: u32 = 0;
    pub const NOTHING: u32 = 1;
    /// The socket takes nothing past TCP any more, and nothing is on its way from it either.
    pub const OUT: u32 = 2;
}
