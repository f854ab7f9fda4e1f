//! Addresses of names that requests bring (dynamic forward proxy): looked up when first asked for, and again when they
//! are old.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;

use super::dns::{Resolve, resolve};
use crate::model::Str;
use crate::model::cluster::DnsCache;

/// What is known by now. Caches of one name are one (`DnsCacheConfig.name`).
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashMap<(Str, String), Known, ahash::RandomState>>);

#[derive(Debug)]
struct Known {
    address: IpAddr,
    looked_up: Instant,
    used: Instant,
}

impl Names {
    /// An address of the name; `None` if it has none, or the cache is full.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        cache: &DnsCache,
        resolver: &Arc<dyn Resolve>,
        runtime: Option<&Handle>,
    ) -> Option<IpAddr> {
        if let Ok(address) = name.parse() {
            return Some(address);
        }
        let key = (cache.name.clone(), name.to_ascii_lowercase());
        let known = self.known(&key, cache);
        if let Some((address, true)) = known {
            return Some(address);
        }
        let (resolver, asked, family) = (resolver.clone(), key.1.clone(), cache.family);
        let lookup = async move { resolve(&*resolver, &asked, family).await };
        let answer = match runtime {
            // Where the resolver's own tasks live.
            Some(runtime) => runtime.spawn(lookup).await.ok()?,
            None => lookup.await,
        };
        match answer {
            Ok(answer) => {
                let address = *answer.addresses.first()?;
                self.learn(key, address, cache).then_some(address)
            }
            // A server that does not answer leaves what was known.
            Err(error) => {
                tracing::debug!("{error}");
                known.map(|(address, _)| address)
            }
        }
    }

    /// The address, and whether it is fresh.
    fn known(&self, key: &(Str, String), cache: &DnsCache) -> Option<(IpAddr, bool)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_mut(key)?;
        let now = Instant::now();
        known.used = now;
        Some((known.address, now.duration_since(known.looked_up) < cache.refresh))
    }

    fn learn(&self, key: (Str, String), address: IpAddr, cache: &DnsCache) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if !known.contains_key(&key) {
            known.retain(|(of, _), known| {
                *of != cache.name || now.duration_since(known.used) < cache.host_ttl
            });
            if known.keys().filter(|(of, _)| *of == cache.name).count() >= cache.max_hosts {
                return false;
            }
        }
        known.insert(key, Known { address, looked_up: now, used: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::support::Scripted;
    use super::*;
    use crate::model::cluster::DnsFamily;

    fn cache(max_hosts: usize, refresh: Duration) -> DnsCache {
        let family = DnsFamily::V4Only;
        DnsCache { name: "c".into(), family, refresh, host_ttl: Duration::from_secs(300), max_hosts }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_and_kept_while_its_server_is_away() {
        let scripted = Arc::new(Scripted::default());
        let resolver: Arc<dyn Resolve> = scripted.clone();
        let (names, fresh) = (Names::default(), cache(2, Duration::from_secs(60)));
        let ask = async |name: &str, cache: &DnsCache| names.resolve(name, cache, &resolver, None).await;
        assert_eq!(ask("a.test", &fresh).await, None);
        scripted.set("a.test", &["10.0.0.1"], 5);
        let one = Some("10.0.0.1".parse().unwrap());
        assert_eq!(ask("A.test", &fresh).await, one);
        scripted.set("a.test", &["10.0.0.2"], 5);
        assert_eq!(ask("a.test", &fresh).await, one, "fresh");
        let old = cache(2, Duration::ZERO);
        assert_eq!(ask("a.test", &old).await, Some("10.0.0.2".parse().unwrap()));
        scripted.fail("a.test");
        assert_eq!(ask("a.test", &old).await, Some("10.0.0.2".parse().unwrap()));
        assert_eq!(ask("192.0.2.1", &fresh).await, Some("192.0.2.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn no_more_names_are_kept_than_configured() {
        let scripted = Arc::new(Scripted::default());
        let resolver: Arc<dyn Resolve> = scripted.clone();
        let (names, cache) = (Names::default(), cache(1, Duration::from_secs(60)));
        scripted.set("a.test", &["10.0.0.1"], 5);
        scripted.set("b.test", &["10.0.0.2"], 5);
        assert!(names.resolve("a.test", &cache, &resolver, None).await.is_some());
        assert!(names.resolve("b.test", &cache, &resolver, None).await.is_none());
    }
}
