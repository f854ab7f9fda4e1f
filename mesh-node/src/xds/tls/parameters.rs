//! Protocol versions, cipher suites and groups (`TlsParameters`).
//!
//! What a list names beyond what is implemented here is dropped, which is only ever stricter; a list of which
//! nothing is left is an error.

use std::sync::Arc;

use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedProtocolVersion};

use crate::xds::common::enumeration;
use crate::xds::error::{At, XdsError};

/// OpenSSL's names of the TLS 1.2 suites that are implemented.
const SUITES: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

const GROUPS: [(&str, NamedGroup); 4] = [
    ("X25519", NamedGroup::X25519),
    ("P-256", NamedGroup::secp256r1),
    ("P-384", NamedGroup::secp384r1),
    ("X25519MLKEM768", NamedGroup::X25519MLKEM768),
];

/// The provider, narrowed to the suites and groups that the parameters name.
pub(super) fn provider(
    at: At<'_>,
    proto: Option<&TlsParameters>,
    server: bool,
) -> Result<Arc<CryptoProvider>, XdsError> {
    let mut provider = aws_lc_rs::default_provider();
    let Some(proto) = proto else { return Ok(Arc::new(provider)) };
    if !proto.cipher_suites.is_empty() {
        // `[A|B]` are of equal preference; TLS 1.3 suites are not in this list.
        let names = proto.cipher_suites.iter().flat_map(|s| s.trim_matches(['[', ']']).split('|'));
        let wanted: Vec<_> =
            names.filter_map(|name| SUITES.iter().find(|(n, _)| *n == name)).map(|(_, s)| *s).collect();
        if wanted.is_empty() {
            let known = SUITES.map(|(name, _)| name).join(", ");
            return Err(at.field("cipher_suites").invalid(format!("none is supported; use some of {known}")));
        }
        let tls12 = |s: &rustls::SupportedCipherSuite| s.version().version == ProtocolVersion::TLSv1_2;
        provider.cipher_suites.retain(|s| !tls12(s) || wanted.contains(&s.suite()));
        if server {
            let place = |s: &rustls::SupportedCipherSuite| wanted.iter().position(|w| *w == s.suite());
            provider.cipher_suites.sort_by_key(|s| (tls12(s), place(s)));
        }
    }
    if !proto.ecdh_curves.is_empty() {
        let place = |group: NamedGroup| {
            let name = GROUPS.iter().find(|(_, g)| *g == group)?.0;
            proto.ecdh_curves.iter().position(|curve| curve == name)
        };
        provider.kx_groups.retain(|group| place(group.name()).is_some());
        provider.kx_groups.sort_by_key(|group| place(group.name()));
        if provider.kx_groups.is_empty() {
            let known = GROUPS.map(|(name, _)| name).join(", ");
            return Err(at.field("ecdh_curves").invalid(format!("none is supported; use some of {known}")));
        }
    }
    Ok(Arc::new(provider))
}

/// The protocol versions between minimum and maximum, of TLS 1.2 and 1.3.
pub(super) fn versions(
    at: At<'_>,
    proto: Option<&TlsParameters>,
) -> Result<Vec<&'static SupportedProtocolVersion>, XdsError> {
    let (min, max) = match proto {
        Some(proto) => (
            enumeration(at.field("tls_minimum_protocol_version"), proto.tls_minimum_protocol_version)?,
            enumeration(at.field("tls_maximum_protocol_version"), proto.tls_maximum_protocol_version)?,
        ),
        None => (TlsProtocol::TlsAuto, TlsProtocol::TlsAuto),
    };
    let max = if max == TlsProtocol::TlsAuto { TlsProtocol::TlSv13 } else { max };
    let of = [(TlsProtocol::TlSv12, &rustls::version::TLS12), (TlsProtocol::TlSv13, &rustls::version::TLS13)];
    let versions: Vec<_> = of
        .into_iter()
        .filter(|(v, _)| (min as i32..=max as i32).contains(&(*v as i32)))
        .map(|(_, v)| v)
        .collect();
    if versions.is_empty() {
        return Err(at.invalid("no version between minimum and maximum is TLSv1_2 or TLSv1_3; allow one"));
    }
    Ok(versions)
}
