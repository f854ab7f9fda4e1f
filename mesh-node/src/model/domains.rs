//! Virtual hosts by domain, so that finding one costs the same however many there are.

use std::collections::{BTreeMap, HashMap};

/// The domains of a route table (`VirtualHost.domains`), as an index into its virtual hosts.
#[derive(Debug, Default)]
pub struct Domains {
    /// Lower case.
    exact: HashMap<Box<str>, usize, ahash::RandomState>,
    /// `*suffix`, longest first.
    suffix: Vec<Wildcards>,
    /// `prefix*`, longest first.
    prefix: Vec<Wildcards>,
    /// `*`.
    catch_all: Option<usize>,
}

/// Wildcards whose fixed part has the same length.
#[derive(Debug, Default)]
struct Wildcards {
    length: usize,
    by_text: HashMap<Box<str>, usize, ahash::RandomState>,
}

/// Two virtual hosts, or one twice, claim this domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("domain {0:?} is claimed twice")]
pub struct DuplicateDomain(pub String);

impl Domains {
    /// Indexes the domains of virtual hosts, given in order.
    pub fn new<D: AsRef<str>>(
        virtual_hosts: impl IntoIterator<Item = impl IntoIterator<Item = D>>,
    ) -> Result<Self, DuplicateDomain> {
        let mut domains = Self::default();
        let mut suffix: BTreeMap<usize, Wildcards> = BTreeMap::new();
        let mut prefix: BTreeMap<usize, Wildcards> = BTreeMap::new();
        for (index, of_host) in virtual_hosts.into_iter().enumerate() {
            for domain in of_host {
                let domain = domain.as_ref().to_ascii_lowercase();
                let previous = if domain == "*" {
                    domains.catch_all.replace(index)
                } else if let Some(text) = domain.strip_prefix('*') {
                    Wildcards::insert(&mut suffix, text, index)
                } else if let Some(text) = domain.strip_suffix('*') {
                    Wildcards::insert(&mut prefix, text, index)
                } else {
                    domains.exact.insert(domain.as_str().into(), index)
                };
                if previous.is_some() {
                    return Err(DuplicateDomain(domain));
                }
            }
        }
        domains.suffix = suffix.into_values().rev().collect();
        domains.prefix = prefix.into_values().rev().collect();
        Ok(domains)
    }

    /// The virtual host for a lower-case host: exact, then the longest suffix, then the longest prefix, then
    /// `*`. A wildcard stands for at least one character.
    pub fn find(&self, host: &str) -> Option<usize> {
        let part = |of: &Wildcards, text: Option<&str>| {
            text.filter(|_| of.length < host.len()).and_then(|text| of.by_text.get(text)).copied()
        };
        self.exact
            .get(host)
            .copied()
            .or_else(|| {
                self.suffix.iter().find_map(|w| part(w, host.get(host.len().checked_sub(w.length)?..)))
            })
            .or_else(|| self.prefix.iter().find_map(|w| part(w, host.get(..w.length))))
            .or(self.catch_all)
    }

    /// Is `*` the only domain, so that the host does not matter?
    pub fn only_catch_all(&self) -> Option<usize> {
        let others = self.exact.is_empty() && self.suffix.is_empty() && self.prefix.is_empty();
        self.catch_all.filter(|_| others)
    }
}

impl Wildcards {
    fn insert(all: &mut BTreeMap<usize, Self>, text: &str, index: usize) -> Option<usize> {
        let of_length = all.entry(text.len()).or_default();
        of_length.length = text.len();
        of_length.by_text.insert(text.into(), index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains() -> Domains {
        Domains::new([
            vec!["a.example", "A.example:8080"],
            vec!["*.example"],
            vec!["*-x.example"],
            vec!["a.*"],
            vec!["a.b.*"],
            vec!["*"],
        ])
        .unwrap()
    }

    #[test]
    fn the_most_specific_domain_serves_a_host() {
        let domains = domains();
        for (host, want) in [
            ("a.example", 0),
            ("a.example:8080", 0),
            ("b.example", 1),
            ("y-x.example", 2),
            ("c.d.example", 1),
            ("a.org", 3),
            ("a.b.c", 4),
            ("a.b.example", 1),
            // A wildcard needs at least one character.
            (".example", 5),
            ("a.", 5),
            ("", 5),
            ("aé.org", 5),
        ] {
            assert_eq!(domains.find(host), Some(want), "{host}");
        }
    }

    #[test]
    fn without_a_catch_all_an_unknown_host_finds_nothing() {
        let domains = Domains::new([["a.example"]]).unwrap();
        assert_eq!(domains.find("b.example"), None);
        assert_eq!(domains.only_catch_all(), None);
        assert_eq!(Domains::new([["*"]]).unwrap().only_catch_all(), Some(0));
    }

    #[test]
    fn a_domain_claimed_twice_is_refused() {
        let twice = Domains::new([["a.example"], ["A.example"]]).unwrap_err();
        assert_eq!(twice.to_string(), "domain \"a.example\" is claimed twice");
        assert!(Domains::new([["*", "*"]]).is_err());
        assert!(Domains::new([["*.b", "*.b"]]).is_err());
        assert!(Domains::new([["b.*", "b.*"]]).is_err());
    }
}
