//! Names to addresses, as the system's resolver configuration says: `/etc/hosts`, search domains, servers.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::RecordType;

use crate::model::cluster::DnsFamily;

/// The addresses of a name, in the order of the answer. Empty: the name has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub addresses: Vec<IpAddr>,
    /// The least of the records' times to live.
    pub ttl: Option<Duration>,
}

/// The name could not be looked up: no server answered, or none could. Worth another try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resolve {name}: {reason}")]
pub struct ResolveError {
    pub name: String,
    pub reason: String,
}

/// An address family of one lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A lookup that is under way.
pub type Lookups<'a> = Pin<Box<dyn Future<Output = Result<Answer, ResolveError>> + Send + 'a>>;

/// Looks names up. The one in service asks the system's servers; tests have their own.
pub trait Resolve: Send + Sync + std::fmt::Debug {
    /// The addresses of `name` in one family.
    fn lookup<'a>(&'a self, name: &'a str, family: Family) -> Lookups<'a>;
}

/// The addresses of a name for `Cluster.dns_lookup_family`.
pub(crate) async fn resolve(
    resolver: &dyn Resolve,
    name: &str,
    family: DnsFamily,
) -> Result<Answer, ResolveError> {
    let (first, second) = match family {
        DnsFamily::V4Only => return resolver.lookup(name, Family::V4).await,
        DnsFamily::V6Only => return resolver.lookup(name, Family::V6).await,
        DnsFamily::Auto => (Family::V6, Family::V4),
        DnsFamily::V4Preferred => (Family::V4, Family::V6),
        DnsFamily::All => return both(resolver, name).await,
    };
    match resolver.lookup(name, first).await {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        // An error in the first family must not hide an answer in the second.
        first => match resolver.lookup(name, second).await {
            Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
            second => first.and(second),
        },
    }
}

async fn both(resolver: &dyn Resolve, name: &str) -> Result<Answer, ResolveError> {
    let (v4, v6) =
        futures_util::future::join(resolver.lookup(name, Family::V4), resolver.lookup(name, Family::V6))
            .await;
    match (v4, v6) {
        (Ok(mut all), Ok(v6)) => {
            all.addresses.extend(v6.addresses);
            all.ttl = all.ttl.into_iter().chain(v6.ttl).min();
            Ok(all)
        }
        // Half an answer is an answer if there is something in it.
        (Ok(one), Err(_)) | (Err(_), Ok(one)) if !one.addresses.is_empty() => Ok(one),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// The system's resolver.
#[derive(Default)]
pub struct SystemResolver {
    /// Made at first use, and anew after a failure: `/etc/resolv.conf` may have changed.
    current: Mutex<Option<TokioResolver>>,
}

impl std::fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SystemResolver")
    }
}

impl SystemResolver {
    fn current(&self) -> Result<TokioResolver, hickory_resolver::ResolveError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = &*current {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio()?;
        // The cluster decides when to ask again.
        builder.options_mut().cache_size = 0;
        let resolver = builder.build();
        *current = Some(resolver.clone());
        Ok(resolver)
    }

    async fn ask(&self, name: &str, family: Family) -> Result<Answer, hickory_resolver::ResolveError> {
        let resolver = self.current()?;
        let record_type = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        match resolver.lookup(name, record_type).await {
            Ok(lookup) => Ok(answer(&lookup)),
            // The servers know that there is no such name or address: an answer.
            Err(error) if error.is_no_records_found() => Ok(Answer::default()),
            Err(error) => {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Err(error)
            }
        }
    }
}

impl Resolve for SystemResolver {
    fn lookup<'a>(&'a self, name: &'a str, family: Family) -> Lookups<'a> {
        Box::pin(async move {
            self.ask(name, family)
                .await
                .map_err(|error| ResolveError { name: name.to_owned(), reason: error.to_string() })
        })
    }
}

fn answer(lookup: &Lookup) -> Answer {
    let records = lookup.record_iter().filter_map(|record| Some((record.data().ip_addr()?, record.ttl())));
    let (addresses, ttls): (Vec<IpAddr>, Vec<u32>) = records.unzip();
    Answer { addresses, ttl: ttls.into_iter().min().map(|s| Duration::from_secs(s.into())) }
}
