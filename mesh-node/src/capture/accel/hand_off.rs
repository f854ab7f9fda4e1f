//! Hand-off: of a connection between two applications of this node, both of whose halves are this proxy's, the
//! kernel carries the bytes from one application's socket to the other's.
//!
//! The two halves find each other by the accelerated connection between them. Each tells how many bytes it
//! has put into its application's queue; the program that judges a sender's messages (`mesh-ebpf/src/hand_off.rs`)
//! compares that with what the sender has given to the proxy. Whether a connection may be handed off is decided by
//! who copies it; here is only whether it can be.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mesh_common::accel::{End, state, way};
use mesh_common::hand_off::{MAX_DIRECTIONS, NOTHING_FORWARDED, word};
use mesh_common::{CounterKey, hook, pod_flags, reason};

use super::super::bpf::{Map, SharedWords};
use super::super::programs::{Maps, Programs};
use super::KernelGauge;
use crate::model::workload::{HalfOfConnection, HandOff, PastProxy};

/// Directions that have ended stay unused until so many others have: a program may still be looking at one.
const RESTING: usize = 256;

/// The connections of this node that are or may be handed off.
#[derive(Debug)]
pub(in crate::capture) struct HandOffs {
    /// Handing off is on. Off, new connections do not even ask.
    on: AtomicBool,
    maps: Arc<Maps>,
    gauge: Arc<KernelGauge>,
    /// Mapped once handing off is on: two megabytes, of which every page counts as this process's.
    directions: OnceLock<SharedWords>,
    /// Where they are pinned.
    pin: PathBuf,
    /// Number of the direction that begins at a socket, by the socket's key.
    numbers: Map<u64, u32>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By the key of the connection between the halves; those of which one half is here.
    waiting: HashMap<u64, Arc<Connection>>,
    /// Directions that were used, the longest ago first.
    rested: VecDeque<u32>,
    /// Directions from here on were never used; 0 never is.
    used: u32,
}

/// Both halves of a connection.
#[derive(Debug)]
struct Connection {
    all: Arc<HandOffs>,
    /// Key of the connection between the halves.
    key: u64,
    /// Keys of the applications' sockets, the client's first, when both are known; and the direction that begins
    /// at each.
    known: OnceLock<[(u64, u32); 2]>,
    /// Key of the first half's application, and whether that is the server.
    first: (u64, bool),
    ended: AtomicBool,
}

/// One half.
#[derive(Debug)]
struct Half {
    connection: Arc<Connection>,
    inbound: bool,
    /// The proxy's socket towards this half's application; open for as long as this is used.
    socket: RawFd,
    /// What was told last.
    told: AtomicU64,
    /// Bytes went to the application by TCP: nothing goes straight to it any more.
    by_tcp: AtomicBool,
}

impl HandOffs {
    /// Begins with nothing handed off, whatever an earlier process has left.
    ///
    /// # Errors
    /// If a map cannot be opened.
    pub(super) fn open(programs: &Programs, maps: Arc<Maps>, gauge: Arc<KernelGauge>) -> io::Result<Self> {
        let numbers: Map<u64, u32> = Map::open(&programs.pin("HANDED_OFF"))?;
        let pin = programs.pin("DIRECTIONS");
        let left = numbers.keys()?;
        if !left.is_empty() {
            let directions = map(&pin)?;
            for key in left {
                if let Some(number) = numbers.get(&key)?
                    && number < MAX_DIRECTIONS
                {
                    clear(&directions, number);
                }
                numbers.remove(&key)?;
            }
        }
        let (on, directions, table) = (AtomicBool::new(false), OnceLock::new(), Mutex::default());
        Ok(Self { on, maps, gauge, directions, pin, numbers, table })
    }

    /// Makes ready for being switched on. False, and the reason in the log, if that cannot be.
    pub(super) fn prepare(&self) -> bool {
        if self.directions.get().is_none() {
            match map(&self.pin) {
                // Another may have been faster; its mapping is the same memory.
                Ok(directions) => drop(self.directions.set(directions)),
                Err(error) => {
                    tracing::warn!("DIRECTIONS map: {error}");
                    return false;
                }
            }
        }
        true
    }

    /// On only once it is [prepared](Self::prepare).
    pub(super) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    /// Of connections that are handed off, so mapped.
    fn directions(&self) -> &SharedWords {
        self.directions.get().expect("nothing is handed off before it is switched on")
    }

    /// What hands off the connection of which this is one half, of the pod in `slot`.
    pub(in crate::capture) fn half(
        self: &Arc<Self>,
        slot: u32,
        half: &HalfOfConnection<'_>,
    ) -> Option<Box<dyn HandOff>> {
        let allowed = || {
            let pod = self.maps.pods.get(&slot).ok().flatten();
            pod.is_some_and(|pod| pod.flags & pod_flags::HAND_OFF != 0)
        };
        if !self.on.load(Ordering::Acquire) || !allowed() {
            return None;
        }
        match self.join(half) {
            Ok(half) => Some(Box::new(half)),
            Err(reason) => {
                self.count(slot, reason);
                None
            }
        }
    }

    fn join(self: &Arc<Self>, half: &HalfOfConnection<'_>) -> Result<Half, u16> {
        let [client, endpoint] = half.plain.ok_or(reason::KEPT_TLS)?;
        let (application, between) = if half.inbound { (endpoint, client) } else { (client, endpoint) };
        let own =
            self.end(application.as_raw_fd()).filter(takes_all_past_tcp).ok_or(reason::KEPT_APPLICATION)?;
        let other = self
            .end(between.as_raw_fd())
            .filter(|end| end.way == way::BETWEEN_PROXIES)
            .ok_or(reason::KEPT_PEER)?;
        let own_key = own.key ^ 1;
        let key = other.key & !1;
        let mut table = self.table();
        let connection = match table.waiting.get(&key) {
            // The client's half and the server's, never two of a kind.
            Some(connection) if connection.first.1 != half.inbound => connection.clone(),
            Some(_) => return Err(reason::KEPT_PEER),
            None => {
                let connection = Arc::new(Connection {
                    all: self.clone(),
                    key,
                    known: OnceLock::new(),
                    first: (own_key, half.inbound),
                    ended: AtomicBool::new(false),
                });
                table.waiting.insert(key, connection.clone());
                return Ok(Half::new(connection, half.inbound, application));
            }
        };
        table.waiting.remove(&key);
        let numbers = table.take().ok_or(reason::KEPT_FULL)?;
        drop(table);
        let keys = if half.inbound { [connection.first.0, own_key] } else { [own_key, connection.first.0] };
        self.begin(keys, numbers);
        let _ = connection.known.set([(keys[0], numbers[0]), (keys[1], numbers[1])]);
        if connection.ended.load(Ordering::Acquire) {
            connection.end();
        }
        Ok(Half::new(connection, half.inbound, application))
    }

    fn begin(&self, keys: [u64; 2], numbers: [u32; 2]) {
        for (from, to) in [(0, 1), (1, 0)] {
            let set = |field, value| self.word(numbers[from], field).store(value, Ordering::Release);
            set(word::FORWARDED, NOTHING_FORWARDED);
            set(word::RECEIVER, keys[to]);
            set(word::SENDER, keys[from]);
            if let Err(error) = self.numbers.insert(&keys[from], &numbers[from]) {
                tracing::warn!("a connection is not handed off: HANDED_OFF map: {error}");
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, socket: RawFd) -> Option<End> {
        self.gauge.ends.get(&socket).ok().flatten().filter(|end| end.key != 0)
    }

    fn word(&self, number: u32, field: usize) -> &AtomicU64 {
        self.directions().word(number as usize * word::COUNT + field)
    }

    fn count(&self, slot: u32, reason: u16) {
        let key = CounterKey { slot, hook: hook::ACCEL, reason };
        let counted = aya::util::nr_cpus().map_err(|(_, error)| error);
        // One at a time, as the counter has to be.
        let _alone = self.table();
        if let Err(error) = counted.and_then(|cpus| self.maps.counters.count(&key, cpus)) {
            tracing::debug!("COUNTERS map: {error}");
        }
    }
}

impl Table {
    /// Two directions that nobody uses.
    fn take(&mut self) -> Option<[u32; 2]> {
        let mut one = || {
            if self.rested.len() > RESTING || self.used + 1 >= MAX_DIRECTIONS {
                return self.rested.pop_front();
            }
            self.used += 1;
            Some(self.used)
        };
        let first = one()?;
        match one() {
            Some(second) => Some([first, second]),
            None => {
                self.rested.push_back(first);
                None
            }
        }
    }
}

/// Whether every byte that the proxy has sent there, if any, went past TCP.
fn takes_all_past_tcp(end: &End) -> bool {
    end.way == way::TO_APPLICATION && matches!(end.state, state::CLEAN | state::ACCELERATED)
}

fn map(pin: &Path) -> io::Result<SharedWords> {
    SharedWords::open(pin, MAX_DIRECTIONS as usize * word::COUNT)
}

fn clear(directions: &SharedWords, number: u32) {
    for field in 0..word::COUNT {
        directions.word(number as usize * word::COUNT + field).store(0, Ordering::Release);
    }
}

impl Connection {
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for (_, number) in self.known.get().into_iter().flatten() {
            self.all.word(*number, word::RECEIVER).store(0, Ordering::Release);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(known) = self.known.get() else { return };
        for (key, number) in known {
            if let Err(error) = self.all.numbers.remove(key) {
                tracing::warn!("HANDED_OFF map: {error}");
            }
            clear(self.all.directions(), *number);
        }
        self.all.table().rested.extend(known.map(|(_, number)| number));
    }
}

impl Half {
    fn new(connection: Arc<Connection>, inbound: bool, socket: BorrowedFd<'_>) -> Self {
        let told = AtomicU64::new(NOTHING_FORWARDED);
        Self { connection, inbound, socket: socket.as_raw_fd(), told, by_tcp: AtomicBool::new(false) }
    }
}

impl HandOff for Half {
    fn all_written(&self, received: u64, sent: u64) {
        let all = &self.connection.all;
        let Some(known) = self.connection.known.get() else { return };
        // Of the direction that ends at this half's application.
        let (forwarded, (_, number)) = if self.inbound { (received, known[0]) } else { (sent, known[1]) };
        if self.told.swap(forwarded, Ordering::Relaxed) == forwarded || self.by_tcp.load(Ordering::Relaxed) {
            return;
        }
        // Asked after all was written: once a byte went by TCP the program never gives it anything straight.
        if all.end(self.socket).is_some_and(|end| takes_all_past_tcp(&end)) {
            all.word(number, word::FORWARDED).store(forwarded, Ordering::Release);
        } else {
            self.by_tcp.store(true, Ordering::Relaxed);
        }
    }

    fn past_proxy(&self) -> PastProxy {
        let Some(known) = self.connection.known.get() else { return PastProxy::default() };
        let read =
            |side: usize, field| self.connection.all.word(known[side].1, field).load(Ordering::Acquire);
        let last = read(0, word::LAST_NS).max(read(1, word::LAST_NS));
        let quiet = (last != 0).then(|| Duration::from_nanos(monotonic_ns().saturating_sub(last)));
        PastProxy { received: read(0, word::BYTES), sent: read(1, word::BYTES), quiet }
    }

    fn end(&self) {
        self.connection.end();
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.connection.end();
        let mut table = self.connection.all.table();
        // If the other half never came.
        let waits = table.waiting.get(&self.connection.key);
        let own = waits.filter(|waiting| Arc::ptr_eq(waiting, &self.connection)).is_some();
        let waiting = if own { table.waiting.remove(&self.connection.key) } else { None };
        drop(table);
        drop(waiting);
    }
}

/// The clock of the programs.
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_rest_before_they_are_used_again_and_run_out_in_pairs() {
        let mut table = Table::default();
        assert_eq!(table.take(), Some([1, 2]));
        table.rested.extend([1, 2]);
        assert_eq!(table.take(), Some([3, 4]));
        let mut taken = 2;
        while table.take().is_some() {
            taken += 1;
        }
        assert_eq!(taken, (MAX_DIRECTIONS as usize - 1 + 2) / 2);
        assert_eq!(table.rested.len(), 1, "a connection has two");
    }
}
