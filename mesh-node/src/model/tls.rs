//! Compiled TLS contexts (`envoy.extensions.transport_sockets.tls.v3`), and the secrets that come apart from them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use super::Str;

/// A `DownstreamTlsContext`: what a filter chain needs to accept TLS.
#[derive(Debug)]
pub struct DownstreamTls {
    /// With ALPN and client verification as configured.
    pub config: Arc<rustls::ServerConfig>,
    /// The same without ALPN, if `config` has it: for clients that offer only other protocols, which Envoy
    /// serves without one instead of refusing them.
    pub without_alpn: Option<Arc<rustls::ServerConfig>>,
    pub require_client_certificate: bool,
    /// A client's certificate that is accepted has been verified.
    pub verifies_clients: bool,
    /// URI SANs of our own certificate.
    pub local_uri_sans: Vec<Str>,
    /// Our own certificate, DER.
    pub local_leaf: Arc<[u8]>,
}

/// An `UpstreamTlsContext`: what a connection to an endpoint needs.
#[derive(Debug)]
pub struct UpstreamTls {
    /// With ALPN, roots, SAN matching and client certificate as configured.
    pub config: Arc<rustls::ClientConfig>,
    /// `sni`; `None` sends none unless `auto_sni` gives one.
    pub sni: Option<Str>,
    /// URI SANs of our own certificate.
    pub local_uri_sans: Vec<Str>,
    /// Our own certificate, DER, if there is one.
    pub local_leaf: Option<Arc<[u8]>>,
    /// Never shared between workloads or trust settings: part of the pool key.
    pub identity_hash: u64,
}

/// A TLS context: whole, or waiting for secrets that come apart from it (SDS).
#[derive(Debug)]
pub enum TlsContext<T> {
    Ready(Arc<T>),
    Awaits(Arc<Template<T>>),
}

impl<T> Clone for TlsContext<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Ready(context) => Self::Ready(context.clone()),
            Self::Awaits(template) => Self::Awaits(template.clone()),
        }
    }
}

/// Makes a context of its secrets. A line of text is why they do not fit.
type Build<T> = Box<dyn Fn(&[Arc<Secret>]) -> Result<T, String> + Send + Sync>;

/// A TLS context without its secrets. Equal ones are shared by all workloads, each of which has its own secrets.
pub struct Template<T> {
    /// Names of the secrets.
    pub secrets: Vec<Str>,
    build: Build<T>,
}

impl<T> Template<T> {
    /// `build` is given the secrets in the order of their names here.
    pub fn new(
        secrets: Vec<Str>,
        build: impl Fn(&[Arc<Secret>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        Self { secrets, build: Box::new(build) }
    }
}

impl<T> fmt::Debug for Template<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

/// A certificate with its key, or what to trust, as it came: its message, not yet read.
pub struct Secret {
    pub name: Str,
    pub content: Box<[u8]>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a context cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Envoy: "Secret is not supplied by SDS".
    #[error("secret {0:?} has not come")]
    Missing(Str),
    #[error("{0}")]
    Unusable(String),
}

/// The secrets of one workload as they are now, and the contexts made of them.
#[derive(Debug, Default)]
pub struct Secrets {
    by_name: RwLock<HashMap<Str, Arc<Secret>, ahash::RandomState>>,
    downstream: Mutex<Contexts<DownstreamTls>>,
    upstream: Mutex<Contexts<UpstreamTls>>,
}

/// Contexts by the address of their template, which is known to be the same while it can be upgraded.
type Contexts<T> = HashMap<usize, Made<T>, ahash::RandomState>;

#[derive(Debug)]
struct Made<T> {
    template: Weak<Template<T>>,
    of: Vec<Arc<Secret>>,
    context: Result<Arc<T>, NotReady>,
}

impl Secrets {
    /// Another secret of that name, or none, from now on. Connections that exist go on.
    pub fn set(&self, name: Str, secret: Option<Arc<Secret>>) {
        let mut secrets = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match secret {
            Some(secret) => drop(secrets.insert(name, secret)),
            None => drop(secrets.remove(&name)),
        }
    }

    /// The context for connections from clients.
    ///
    /// # Errors
    /// When a secret has not come, or does not fit.
    pub fn downstream(&self, context: &TlsContext<DownstreamTls>) -> Result<Arc<DownstreamTls>, NotReady> {
        self.context(context, &self.downstream)
    }

    /// The context for connections to endpoints.
    ///
    /// # Errors
    /// When a secret has not come, or does not fit.
    pub fn upstream(&self, context: &TlsContext<UpstreamTls>) -> Result<Arc<UpstreamTls>, NotReady> {
        self.context(context, &self.upstream)
    }

    fn context<T>(&self, context: &TlsContext<T>, made: &Mutex<Contexts<T>>) -> Result<Arc<T>, NotReady> {
        let template = match context {
            TlsContext::Ready(context) => return Ok(context.clone()),
            TlsContext::Awaits(template) => template,
        };
        let now = self.of(&template.secrets)?;
        let key = Arc::as_ptr(template) as usize;
        let mut made: MutexGuard<'_, Contexts<T>> = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get(&key)
            && made.template.upgrade().is_some_and(|of| Arc::ptr_eq(&of, template))
            && made.of.iter().zip(&now).all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return made.context.clone();
        }
        let context = (template.build)(&now).map(Arc::new).map_err(NotReady::Unusable);
        if made.len() == made.capacity() {
            made.retain(|_, made| made.template.strong_count() > 0);
        }
        let template = Arc::downgrade(template);
        made.insert(key, Made { template, of: now, context: context.clone() });
        context
    }

    fn of(&self, names: &[Str]) -> Result<Vec<Arc<Secret>>, NotReady> {
        let secrets = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let of = |name: &Str| secrets.get(name).cloned().ok_or_else(|| NotReady::Missing(name.clone()));
        names.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, content: &[u8]) -> Arc<Secret> {
        Arc::new(Secret { name: name.into(), content: content.into() })
    }

    /// A context that says in its SNI what it was made of.
    fn template() -> TlsContext<UpstreamTls> {
        TlsContext::Awaits(Arc::new(Template::new(vec!["own".into(), "ca".into()], |secrets| {
            let text: Vec<_> = secrets.iter().map(|s| String::from_utf8_lossy(&s.content)).collect();
            if text[0] == "bad" {
                return Err("own: no certificate".to_owned());
            }
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let sni = Some(text.join(" ").into());
            Ok(UpstreamTls {
                config: Arc::new(config),
                sni,
                local_uri_sans: Vec::new(),
                local_leaf: None,
                identity_hash: 0,
            })
        })))
    }

    #[test]
    fn a_context_serves_when_its_secrets_have_come_and_follows_them() {
        let (secrets, context) = (Secrets::default(), template());
        assert_eq!(secrets.upstream(&context).unwrap_err(), NotReady::Missing("own".into()));
        secrets.set("own".into(), Some(secret("own", b"1")));
        assert_eq!(secrets.upstream(&context).unwrap_err(), NotReady::Missing("ca".into()));
        secrets.set("ca".into(), Some(secret("ca", b"x")));
        let first = secrets.upstream(&context).unwrap();
        assert_eq!(first.sni.as_deref(), Some("1 x"));
        assert!(Arc::ptr_eq(&first, &secrets.upstream(&context).unwrap()), "made once");
        secrets.set("own".into(), Some(secret("own", b"2")));
        assert_eq!(secrets.upstream(&context).unwrap().sni.as_deref(), Some("2 x"));
        secrets.set("own".into(), Some(secret("own", b"bad")));
        let refused = secrets.upstream(&context).unwrap_err();
        assert_eq!(refused, NotReady::Unusable("own: no certificate".to_owned()));
    }

    #[test]
    fn workloads_with_the_same_configuration_have_their_own_identities() {
        let context = template();
        let of = |own: &[u8]| {
            let secrets = Secrets::default();
            secrets.set("own".into(), Some(secret("own", own)));
            secrets.set("ca".into(), Some(secret("ca", b"x")));
            secrets.upstream(&context).unwrap().sni.clone()
        };
        assert_eq!((of(b"a").as_deref(), of(b"b").as_deref()), (Some("a x"), Some("b x")));
    }
}
