//! Verification of peers as Envoy does it: chain to `trusted_ca`, subject alternative names by matchers, and
//! no comparison of host names unless it is asked for.
//!
//! Whatever is or is not verified about a certificate, the peer must prove that it holds its key: the
//! signatures of the handshake are always checked.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::DataSource;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::CertificateValidationContext;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certificates::certificates;
use super::pins::{Pins, Revoked};
use crate::model::matcher::{StringMatcher, StringPattern};
use crate::xds::common::enumeration;
use crate::xds::error::{At, XdsError};
use crate::xds::matcher;

/// What a peer's certificate must be.
#[derive(Debug)]
struct Trust {
    /// `None`: any certificate will do.
    roots: Option<Roots>,
    /// A `trusted_ca` is given, so a certificate is asked for, even if any will do.
    ask: bool,
    names: Vec<NameMatcher>,
    pins: Pins,
    revoked: Option<Revoked>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Roots {
    store: Arc<RootCertStore>,
    /// A root may also be the peer's own certificate.
    ders: Vec<CertificateDer<'static>>,
}

/// `SubjectAltNameMatcher`; without a kind it looks at names of all kinds.
#[derive(Debug)]
struct NameMatcher {
    kind: Option<SanType>,
    matcher: StringMatcher,
}

/// Is a certificate that is accepted by this context a verified one?
pub(super) fn verifies(proto: &CertificateValidationContext) -> bool {
    let pinned = !proto.verify_certificate_hash.is_empty() || !proto.verify_certificate_spki.is_empty();
    (proto.trusted_ca.is_some() || pinned)
        && proto.trust_chain_verification != TrustChainVerification::AcceptUntrusted as i32
}

/// Verifier of clients.
pub(super) fn client(
    at: At<'_>,
    proto: Option<&CertificateValidationContext>,
    require: bool,
    read: impl FnMut(At<'_>, &DataSource) -> Result<Vec<u8>, XdsError>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, XdsError> {
    let trust = Trust::of(at, proto, read, provider)?;
    let chain = match &trust.roots {
        Some(roots) => {
            let builder = WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider.clone());
            Some(builder.build().map_err(|e| at.field("trusted_ca").invalid(e.to_string()))?)
        }
        None if !require && !trust.ask => return Ok(Arc::new(NoClientAuth)),
        None => None,
    };
    Ok(Arc::new(Clients { trust, chain, require }))
}

/// Verifier of servers.
pub(super) fn server(
    at: At<'_>,
    proto: Option<&CertificateValidationContext>,
    auto_san: bool,
    read: impl FnMut(At<'_>, &DataSource) -> Result<Vec<u8>, XdsError>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, XdsError> {
    Ok(Arc::new(Servers { trust: Trust::of(at, proto, read, provider)?, auto_san }))
}

impl Trust {
    fn of(
        at: At<'_>,
        proto: Option<&CertificateValidationContext>,
        mut read: impl FnMut(At<'_>, &DataSource) -> Result<Vec<u8>, XdsError>,
        provider: &CryptoProvider,
    ) -> Result<Self, XdsError> {
        let algorithms = provider.signature_verification_algorithms;
        let any = |ask, pins| Self { roots: None, ask, names: Vec::new(), pins, revoked: None, algorithms };
        let Some(proto) = proto else { return Ok(any(false, Pins::default())) };
        let roots = match &proto.trusted_ca {
            Some(source) => {
                let at = at.field("trusted_ca");
                Some(Roots::parse(at, &read(at, source)?)?)
            }
            None => None,
        };
        let names = name_matchers(at, proto)?;
        if roots.is_none() && !names.is_empty() {
            return Err(
                at.invalid("subject alternative names can be verified only together with trusted_ca; add it")
            );
        }
        let pins = Pins::of(at, proto)?;
        let revoked = Revoked::of(at, proto, &mut read)?;
        let ask = roots.is_some() || !pins.is_empty();
        let at = at.field("trust_chain_verification");
        let verification: TrustChainVerification = enumeration(at, proto.trust_chain_verification)?;
        if verification == TrustChainVerification::AcceptUntrusted {
            return Ok(any(ask, pins));
        }
        Ok(Self { ask, roots, names, pins, revoked, algorithms })
    }

    /// What is asked of a certificate whose chain is good, but for its names.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if let Some(revoked) = &self.revoked {
            revoked.check(leaf, intermediates, now)?;
        }
        self.pins.check(leaf)
    }

    fn check_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.names.is_empty() {
            return Ok(());
        }
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let names = leaf.subject_alternative_name().map_err(|_| CertificateError::BadEncoding)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let matches = names.iter().any(|name| self.names.iter().any(|matcher| matcher.matches(name)));
        // Envoy: "verify SAN list".
        if matches { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }
}

impl Roots {
    fn parse(at: At<'_>, pem: &[u8]) -> Result<Self, XdsError> {
        let ders = certificates(at, pem)?;
        let mut store = RootCertStore::empty();
        for der in &ders {
            store.add(der.clone()).map_err(|e| at.invalid(format!("is not a usable certificate: {e}")))?;
        }
        Ok(Self { store: Arc::new(store), ders })
    }

    /// Is the peer's certificate itself one of the trusted, and within its time?
    fn contains(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.ders.iter().any(|der| der == leaf) {
            return Ok(false);
        }
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < leaf.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > leaf.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        Ok(true)
    }
}

fn name_matchers(at: At<'_>, proto: &CertificateValidationContext) -> Result<Vec<NameMatcher>, XdsError> {
    let mut matchers = Vec::new();
    let at_typed = at.field("match_typed_subject_alt_names");
    for (i, typed) in proto.match_typed_subject_alt_names.iter().enumerate() {
        let at = at_typed.index(i);
        let kind = match enumeration(at.field("san_type"), typed.san_type)? {
            SanType::Unspecified => return Err(at.field("san_type").invalid("is required")),
            SanType::OtherName => return Err(at.field("san_type").invalid("OTHER_NAME is not supported")),
            kind => Some(kind),
        };
        let proto = typed.matcher.as_ref().ok_or_else(|| at.field("matcher").invalid("is required"))?;
        matchers.push(NameMatcher { kind, matcher: matcher::string(at.field("matcher"), proto)? });
    }
    let at_any = at.field("match_subject_alt_names");
    for (i, proto) in proto.match_subject_alt_names.iter().enumerate() {
        matchers.push(NameMatcher { kind: None, matcher: matcher::string(at_any.index(i), proto)? });
    }
    Ok(matchers)
}

impl NameMatcher {
    fn matches(&self, name: &GeneralName<'_>) -> bool {
        let (kind, text) = match name {
            GeneralName::DNSName(name) => (SanType::Dns, (*name).to_owned()),
            GeneralName::URI(uri) => (SanType::Uri, (*uri).to_owned()),
            GeneralName::RFC822Name(mail) => (SanType::Email, (*mail).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let ip = match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok(),
                    16 => <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok(),
                    _ => None,
                };
                let Some(ip) = ip else { return false };
                (SanType::IpAddress, ip.to_string())
            }
            _ => return false,
        };
        if self.kind.is_some_and(|wanted| wanted != kind) {
            return false;
        }
        match (&self.matcher.pattern, kind) {
            // Envoy matches an exact DNS name as TLS clients do: any case, and the certificate's wildcard.
            (StringPattern::Exact(wanted), SanType::Dns) => dns_name_matches(&text, wanted),
            _ => self.matcher.matches(&text),
        }
    }
}

fn dns_name_matches(own: &str, wanted: &str) -> bool {
    match own.strip_prefix("*.") {
        Some(parent) => wanted.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => own.eq_ignore_ascii_case(wanted),
    }
}

/// Verifies clients.
#[derive(Debug)]
struct Clients {
    trust: Trust,
    chain: Option<Arc<dyn ClientCertVerifier>>,
    require: bool,
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.require
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map(|chain| chain.root_hint_subjects()).unwrap_or_default()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let (Some(chain), Some(roots)) = (&self.chain, &self.trust.roots)
            && !roots.contains(end_entity, now)?
        {
            chain.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.trust.check(end_entity, intermediates, now)?;
        self.trust.check_names(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Verifies servers.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    /// `auto_san_validation`: the certificate must be for the name that was asked for, whatever the
    /// configured names.
    auto_san: bool,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.check(end_entity, intermediates, now)?;
        let Some(roots) = &self.trust.roots else { return Ok(ServerCertVerified::assertion()) };
        if !roots.contains(end_entity, now)? {
            let cert = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.trust.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&cert, &roots.store, intermediates, now, algorithms)?;
        }
        if self.auto_san {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        } else {
            self.trust.check_names(end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}
