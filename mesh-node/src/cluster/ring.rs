//! The hash ring of `RING_HASH` (ketama): every host has places on a circle of hashes, and a key goes to the
//! first place at or after its own hash. Built when hosts change, then immutable.

use crate::model::cluster::HashFunction;
use crate::model::hash::{murmur2, xxhash64};

/// A host as the tables see it: the key that it is hashed by and its share of the load. All shares add up to 1.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a str,
    pub(crate) share: f64,
}

/// Places on the circle, sorted by hash; each with the index of its host.
#[derive(Debug)]
pub(crate) struct Ring {
    places: Box<[(u64, u32)]>,
    /// Fewest and most places that one host has.
    pub(crate) bounds: (usize, usize),
}

impl Ring {
    /// A ring with about `minimum` places (`minimum_ring_size`), more where the host of the least weight needs
    /// them to have a whole number, and at most `maximum`.
    pub(crate) fn new(entries: &[Entry<'_>], minimum: u64, maximum: u64, function: HashFunction) -> Self {
        let least = entries.iter().map(|e| e.share).fold(1.0, f64::min);
        let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
        let size = if entries.is_empty() { 0 } else { scale.ceil() as usize };
        let mut places = Vec::with_capacity(size);
        let mut bounds = (size, 0);
        let mut wanted = 0.0;
        let mut key = String::new();
        for (index, entry) in entries.iter().enumerate() {
            key.clear();
            key.push_str(entry.key);
            key.push('_');
            let stem = key.len();
            // Running sums: hosts whose share is no whole number of places get one more or one less.
            wanted += scale * entry.share;
            let mut count = 0;
            while (places.len() as f64) < wanted {
                key.truncate(stem);
                key.push_str(itoa::Buffer::new().format(count));
                let hash = match function {
                    HashFunction::XxHash => xxhash64(key.as_bytes(), 0),
                    HashFunction::Murmur2 => murmur2(key.as_bytes()),
                };
                places.push((hash, index as u32));
                count += 1;
            }
            bounds = (bounds.0.min(count), bounds.1.max(count));
        }
        places.sort_unstable_by_key(|(hash, _)| *hash);
        Self { places: places.into(), bounds }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The host of a hash; `attempt` goes that many places further.
    pub(crate) fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        let n = self.places.len();
        if n == 0 {
            return None;
        }
        // Envoy's search never takes the first place for the hash 0, which comes to the same.
        let at = self.places.partition_point(|(place, _)| *place < hash);
        let at = if at == n { 0 } else { at };
        Some(self.places[(at + attempt as usize) % n].1 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(shares: &[f64], minimum: u64, maximum: u64) -> Ring {
        let keys: Vec<String> = (0..shares.len()).map(|i| format!("10.0.0.{i}:80")).collect();
        let entries: Vec<_> =
            keys.iter().zip(shares).map(|(key, share)| Entry { key, share: *share }).collect();
        Ring::new(&entries, minimum, maximum, HashFunction::XxHash)
    }

    #[test]
    fn hosts_have_places_by_their_weight() {
        assert_eq!(ring(&[0.25; 4], 1024, 8 << 20).bounds, (256, 256));
        // One in ten of at least 1,024 places: 103 of 1,030.
        let uneven = ring(&[0.1, 0.9], 1024, 8 << 20);
        assert_eq!((uneven.len(), uneven.bounds), (1030, (103, 927)));
        // Not enough places for all: some have one more than others.
        let small = ring(&[0.25; 4], 1, 6);
        assert_eq!((small.len(), small.bounds), (4, (1, 1)));
    }

    #[test]
    fn a_key_keeps_its_host_when_another_host_leaves() {
        let keys = ["a:1", "b:1", "c:1"];
        let all: Vec<_> = keys.iter().map(|key| Entry { key, share: 1.0 / 3.0 }).collect();
        let two: Vec<_> = keys[..2].iter().map(|key| Entry { key, share: 0.5 }).collect();
        // As many places for each host in both.
        let before = Ring::new(&all, 300, 8 << 20, HashFunction::XxHash);
        let after = Ring::new(&two, 200, 8 << 20, HashFunction::XxHash);
        for key in 0..10_000u64 {
            let hash = xxhash64(&key.to_le_bytes(), 0);
            let (before, after) = (before.find(hash, 0).unwrap(), after.find(hash, 0).unwrap());
            assert!(before == 2 || before == after);
        }
    }

    #[test]
    fn another_attempt_takes_the_next_place_and_no_hosts_give_none() {
        let ring = ring(&[0.5, 0.5], 2, 2);
        let first = ring.find(7, 0).unwrap();
        assert_ne!(ring.find(7, 1).unwrap(), first);
        assert_eq!(ring.find(7, 2).unwrap(), first);
        assert_eq!(ring.find(u64::MAX, 0), ring.find(0, 0), "the circle closes");
        assert_eq!(Ring::new(&[], 1024, 8 << 20, HashFunction::XxHash).find(1, 0), None);
    }
}
