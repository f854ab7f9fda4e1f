//! What logs, metrics and policies know of a TLS session, of either side.

use rustls::{CommonState, ProtocolVersion};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::stream_info::TlsInfo;

/// Facts of an established session, of either side.
pub fn session_info(session: &CommonState) -> TlsInfo {
    let mut info = TlsInfo {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        },
        cipher: session.negotiated_cipher_suite().map_or("", |s| cipher_name(s.suite())),
        alpn: session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
        ..TlsInfo::default()
    };
    if let Some(chain) = session.peer_certificates() {
        info.peer_chain = chain.iter().map(|der| der.to_vec()).collect();
        if let Some((_, leaf)) = chain.first().and_then(|der| X509Certificate::from_der(der).ok()) {
            note_peer(&mut info, &leaf);
        }
    }
    info
}

fn note_peer(info: &mut TlsInfo, leaf: &X509Certificate<'_>) {
    info.peer_subject = Some(rfc2253(leaf.subject()));
    info.peer_issuer = Some(rfc2253(leaf.issuer()));
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return };
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => info.peer_uri_sans.push((*uri).to_owned()),
            GeneralName::DNSName(dns) => info.peer_dns_sans.push((*dns).to_owned()),
            _ => {}
        }
    }
}

/// RFC 2253: most specific first, joined by commas.
pub(super) fn rfc2253(name: &x509_parser::x509::X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_attributes()
        .map(|attribute| {
            let oid = attribute.attr_type();
            let key = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry())
                .map_or_else(|_| oid.to_id_string(), str::to_owned);
            let value = attribute.as_str().unwrap_or_default();
            format!("{key}={}", value.replace(',', "\\,"))
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

/// The name that OpenSSL, and so Envoy, gives a suite.
fn cipher_name(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as S;
    match suite {
        S::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        S::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        S::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_identity_is_read_from_its_certificate() {
        let mut params = rcgen::CertificateParams::new(vec!["client.local".to_owned()]).unwrap();
        let spiffe = "spiffe://cluster.local/ns/default/sa/client";
        params.subject_alt_names.push(rcgen::SanType::URI(spiffe.try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Mesh, Inc");
        params.distinguished_name.push(rcgen::DnType::CommonName, "client");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap();
        let (_, leaf) = X509Certificate::from_der(der.der()).unwrap();
        let mut info = TlsInfo::default();
        note_peer(&mut info, &leaf);
        assert_eq!(info.peer_uri_sans, [spiffe]);
        assert_eq!(info.peer_dns_sans, ["client.local"]);
        assert_eq!(info.peer_subject.as_deref(), Some("CN=client,O=Mesh\\, Inc"));
    }
}
