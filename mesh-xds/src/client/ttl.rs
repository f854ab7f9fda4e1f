//! Resources that are forgotten unless they are sent again in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Received, ResourceType};

#[derive(Debug, Default)]
pub(super) struct Ttls(BTreeMap<(ResourceType, String), Instant>);

impl Ttls {
    /// Notes what a response says of time.
    pub(super) fn note(&mut self, received: &Received, now: Instant) {
        for resource in &received.resources {
            self.set(received.kind, &resource.name, resource.ttl, now);
        }
        for (name, ttl) in &received.heartbeats {
            self.set(received.kind, name, Some(*ttl), now);
        }
        for name in &received.removed {
            self.set(received.kind, name, None, now);
        }
    }

    fn set(&mut self, kind: ResourceType, name: &str, ttl: Option<Duration>, now: Instant) {
        match ttl {
            Some(ttl) => drop(self.0.insert((kind, name.to_owned()), now + ttl)),
            None if self.0.is_empty() => {}
            None => drop(self.0.remove(&(kind, name.to_owned()))),
        }
    }

    /// When the next one runs out.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Those that have run out; they are forgotten here.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<(ResourceType, String)> {
        self.0.extract_if(.., |_, at| *at <= now).map(|(key, _)| key).collect()
    }
}
