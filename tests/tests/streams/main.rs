//! Byte streams: whatever applications do with their sockets, they see what they see by TCP. Cases step by step,
//! programs of other people and other languages, transfers drawn at random, and all of it while acceleration, the
//! proxy and enrolment come and go. `MESH_STREAMS` and `MESH_ROUNDS` make the last two longer.

mod cases;
mod checks;
mod http;
mod peers;
mod random;
mod rounds;
mod stage;
