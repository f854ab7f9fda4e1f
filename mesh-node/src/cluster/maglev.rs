//! The lookup table of `MAGLEV` (Eisenbud et al., "Maglev", section 3.4), with weights as Envoy has them: hosts
//! take turns to claim places in an order of their own; a key goes to the place of its hash.

use super::ring::Entry;
use crate::model::hash::xxhash64;

/// Places, each with the index of its host. The width of an index depends on how many hosts there are: most
/// clusters get by with a byte, and a table has 65,537 places.
#[derive(Debug)]
pub(crate) struct Maglev {
    places: Places,
    /// Fewest and most places that one host has.
    pub(crate) bounds: (usize, usize),
}

#[derive(Debug)]
enum Places {
    Narrow(Box<[u8]>),
    Wide(Box<[u32]>),
}

/// A host that claims places.
struct Claim {
    host: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    target: f64,
    count: usize,
}

impl Maglev {
    /// A table of `size` places, which is a prime above the number of hosts.
    pub(crate) fn new(entries: &[Entry<'_>], size: u64) -> Self {
        if entries.is_empty() {
            return Self { places: Places::Narrow(Box::default()), bounds: (0, 0) };
        }
        let most = entries.iter().map(|e| e.share).fold(0.0, f64::max);
        let mut claims = claims(entries, size);
        let mut places: Vec<Option<u32>> = vec![None; size as usize];
        let mut left = places.len();
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for claim in &mut claims {
                if left == 0 {
                    break;
                }
                // A host with a third of the greatest weight claims a place in every third round.
                if round * claim.share < claim.target {
                    continue;
                }
                claim.target += most;
                while places[claim.place(size)].is_some() {
                    claim.next += 1;
                }
                places[claim.place(size)] = Some(claim.host);
                claim.next += 1;
                claim.count += 1;
                left -= 1;
            }
        }
        let counts = || claims.iter().map(|claim| claim.count);
        let bounds = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
        let hosts = places.into_iter().flatten();
        let places = if entries.len() <= usize::from(u8::MAX) {
            Places::Narrow(hosts.map(|host| host as u8).collect())
        } else {
            Places::Wide(hosts.collect())
        };
        Self { places, bounds }
    }

    /// The host of a hash; another `attempt` looks in quite another place.
    pub(crate) fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let at = |n: usize| (n > 0).then(|| (hash % n as u64) as usize);
        match &self.places {
            Places::Narrow(places) => Some(usize::from(places[at(places.len())?])),
            Places::Wide(places) => Some(places[at(places.len())?] as usize),
        }
    }
}

/// In the order of the hosts' keys, so that the table does not depend on the order of endpoints.
fn claims(entries: &[Entry<'_>], size: u64) -> Vec<Claim> {
    let mut claims: Vec<(&str, Claim)> = entries
        .iter()
        .zip(0u32..)
        .map(|(entry, host)| {
            let key = entry.key.as_bytes();
            let claim = Claim {
                host,
                offset: xxhash64(key, 0) % size,
                skip: xxhash64(key, 1) % (size - 1) + 1,
                next: 0,
                share: entry.share,
                target: 0.0,
                count: 0,
            };
            (entry.key, claim)
        })
        .collect();
    claims.sort_by(|a, b| a.0.cmp(b.0));
    claims.into_iter().map(|(_, claim)| claim).collect()
}

impl Claim {
    fn place(&self, size: u64) -> usize {
        // Both factors are below 5,000,011 (`table_size`): no overflow before `next` is in the trillions.
        ((self.offset + self.skip * self.next) % size) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(keys: &[String], shares: &[f64]) -> Maglev {
        let entries: Vec<_> =
            keys.iter().zip(shares).map(|(key, share)| Entry { key, share: *share }).collect();
        Maglev::new(&entries, 65_537)
    }

    fn keys(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("10.0.{}.{}:80", i / 250, i % 250)).collect()
    }

    #[test]
    fn hosts_have_places_by_their_weight_to_within_one_round() {
        let even = entries(&keys(5), &[0.2; 5]);
        assert_eq!(even.bounds, (13_107, 13_108));
        let uneven = entries(&keys(2), &[0.25, 0.75]);
        assert!(uneven.bounds.0.abs_diff(16_384) <= 1 && uneven.bounds.1.abs_diff(49_153) <= 1, "{uneven:?}");
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter() {
        let (forth, mut back) = (keys(300), keys(300));
        back.reverse();
        let (a, b) = (entries(&forth, &[1.0 / 300.0; 300]), entries(&back, &[1.0 / 300.0; 300]));
        for hash in 0..65_537 {
            assert_eq!(forth[a.find(hash, 0).unwrap()], back[b.find(hash, 0).unwrap()]);
        }
    }

    #[test]
    fn few_keys_move_when_a_host_leaves() {
        let keys = keys(10);
        let before = entries(&keys, &[0.1; 10]);
        let after = entries(&keys[..9], &[1.0 / 9.0; 9]);
        let moved = (0..65_537)
            .filter(|hash| {
                let host = before.find(*hash, 0).unwrap();
                host < 9 && after.find(*hash, 0).unwrap() != host
            })
            .count();
        // The paper: a few percent besides the keys of the host that left.
        assert!(moved < 65_537 / 20, "{moved}");
    }

    #[test]
    fn another_attempt_looks_elsewhere_and_no_hosts_give_none() {
        let table = entries(&keys(10), &[0.1; 10]);
        assert!((1..5).any(|attempt| table.find(42, attempt) != table.find(42, 0)));
        assert_eq!(Maglev::new(&[], 65_537).find(1, 0), None);
    }
}
