//! Own certificates: reading them, and choosing one for a handshake.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::Str;
use crate::xds::error::{At, XdsError};

/// A certificate chain with its key.
#[derive(Debug)]
pub(super) struct Certificate {
    key: Arc<CertifiedKey>,
    /// Lower case.
    dns_names: Vec<String>,
    uris: Vec<Str>,
}

impl Certificate {
    /// Reads a PEM chain and key.
    pub(super) fn parse(
        at: At<'_>,
        chain: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<Self, XdsError> {
        let at_chain = at.field("certificate_chain");
        let chain = certificates(at_chain, chain)?;
        let at_key = at.field("private_key");
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| at_key.invalid(format!("holds no PEM private key: {e}")))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|e| at_key.invalid(format!("cannot be used: {e}")))?;
        let (dns_names, uris) = names(&chain[0]).map_err(|e| at_chain.invalid(e))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            // "Unknown" is a key that cannot show its public half.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(e) => return Err(at_key.invalid(format!("does not belong to certificate_chain: {e}"))),
        }
        Ok(Self { key: Arc::new(key), dns_names, uris })
    }

    /// URI names of the certificate.
    pub(super) fn uri_sans(&self) -> Vec<Str> {
        self.uris.clone()
    }

    /// The certificate itself, DER.
    pub(super) fn leaf(&self) -> Arc<[u8]> {
        self.key.cert.first().map_or(&[][..], |leaf| leaf).into()
    }

    fn has_name(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.dns_names
            .iter()
            .any(|own| own == name || (own.strip_prefix("*.").is_some_and(|p| Some(p) == parent)))
    }
}

/// All certificates of a PEM text.
pub(super) fn certificates(at: At<'_>, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, XdsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(at.invalid("holds no PEM certificate")),
        Err(e) => Err(at.invalid(format!("is not PEM: {e}"))),
    }
}

fn names(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, Vec<Str>), String> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| format!("is not a certificate: {e}"))?;
    let (mut dns, mut uris) = (Vec::new(), Vec::new());
    if let Ok(Some(names)) = leaf.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => dns.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => uris.push(Str::from(*uri)),
                _ => {}
            }
        }
    }
    Ok((dns, uris))
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificates of a listener. Of those that the client's signature schemes allow, the first that has
/// the asked name, else the first.
#[derive(Debug)]
pub(super) struct Certificates(Vec<Certificate>);

impl Certificates {
    pub(super) fn new(certificates: Vec<Certificate>) -> Self {
        Self(certificates)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable =
            || self.0.iter().filter(|c| c.key.key.choose_scheme(hello.signature_schemes()).is_some());
        let named =
            hello.server_name().and_then(|name| usable().find(|c| c.has_name(&name.to_ascii_lowercase())));
        named.or_else(|| usable().next()).map(|certificate| certificate.key.clone())
    }
}
