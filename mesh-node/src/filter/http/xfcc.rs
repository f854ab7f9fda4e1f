//! `x-forwarded-client-cert`: what the TLS session proved about the client, told to the application. The header
//! of an unauthenticated client must never get through unless the configuration says `ALWAYS_FORWARD_ONLY`.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::network::{ClientCertDetails, ForwardClientCert, HttpConnectionManager};
use crate::telemetry::certificate::{sha256_hex, url_encoded_pem};
use crate::telemetry::stream_info::TlsInfo;

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// What to do with the header on every request of one connection, computed once.
#[derive(Debug, PartialEq, Eq)]
pub enum Xfcc {
    Keep,
    Remove,
    Append(String),
    Set(HeaderValue),
}

impl Xfcc {
    /// The rule for connections with this TLS session (Envoy: `mutateXfccRequestHeader`).
    pub fn new(hcm: &HttpConnectionManager, tls: Option<&TlsInfo>) -> Self {
        let authenticated = tls.filter(|tls| !tls.peer_chain.is_empty());
        match (hcm.forward_client_cert, authenticated) {
            (ForwardClientCert::AlwaysForwardOnly, _) => Self::Keep,
            (ForwardClientCert::Sanitize, _) | (_, None) => Self::Remove,
            (ForwardClientCert::ForwardOnly, Some(_)) => Self::Keep,
            (ForwardClientCert::AppendForward, Some(tls)) => Self::Append(element(tls, hcm.set_client_cert)),
            (ForwardClientCert::SanitizeSet, Some(tls)) => {
                HeaderValue::try_from(element(tls, hcm.set_client_cert)).map_or(Self::Remove, Self::Set)
            }
        }
    }

    /// Applies the rule to a request.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Keep => {}
            Self::Remove => {
                headers.remove(XFCC);
            }
            Self::Set(value) => {
                headers.insert(XFCC, value.clone());
            }
            Self::Append(element) => super::header_list::append(headers, XFCC, element, ","),
        }
    }
}

/// One element of the header, in Envoy's order: By, Hash, Cert, Chain, Subject, URI, DNS.
fn element(tls: &TlsInfo, details: ClientCertDetails) -> String {
    let mut out = String::new();
    let mut part = |key: &str, value: &str| {
        if !out.is_empty() {
            out.push(';');
        }
        out.push_str(key);
        out.push_str(value);
    };
    for uri in &tls.local_uri_sans {
        part("By=", uri);
    }
    if let Some(leaf) = tls.peer_chain.first() {
        part("Hash=", &sha256_hex(leaf));
    }
    if details.cert
        && let Some(leaf) = tls.peer_chain.first()
    {
        part("Cert=", &format!("\"{}\"", url_encoded_pem(leaf)));
    }
    if details.chain {
        let chain: String = tls.peer_chain.iter().map(|der| url_encoded_pem(der)).collect();
        part("Chain=", &format!("\"{chain}\""));
    }
    if details.subject {
        part("Subject=", &format!("\"{}\"", tls.peer_subject.as_deref().unwrap_or_default()));
    }
    if details.uri {
        tls.peer_uri_sans.iter().for_each(|uri| part("URI=", uri));
    }
    if details.dns {
        tls.peer_dns_sans.iter().for_each(|dns| part("DNS=", dns));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::hcm;
    use super::*;

    fn client() -> TlsInfo {
        TlsInfo {
            peer_chain: vec![b"abc".to_vec()],
            peer_uri_sans: vec!["spiffe://td/ns/a/sa/b".into()],
            peer_dns_sans: vec!["b.a".into()],
            peer_subject: Some("CN=b,O=x".into()),
            local_uri_sans: vec!["spiffe://td/ns/s/sa/s".into()],
            ..TlsInfo::default()
        }
    }

    fn after(forward: ForwardClientCert, tls: Option<&TlsInfo>) -> Vec<String> {
        let mut hcm = hcm();
        hcm.forward_client_cert = forward;
        hcm.set_client_cert =
            ClientCertDetails { subject: true, uri: true, dns: true, ..ClientCertDetails::default() };
        let mut headers = HeaderMap::new();
        headers.insert(XFCC, HeaderValue::from_static("By=forged"));
        Xfcc::new(&hcm, tls).apply(&mut headers);
        headers.get_all(XFCC).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_client_without_a_certificate_cannot_claim_an_identity() {
        for forward in [
            ForwardClientCert::Sanitize,
            ForwardClientCert::SanitizeSet,
            ForwardClientCert::AppendForward,
            ForwardClientCert::ForwardOnly,
        ] {
            assert!(after(forward, None).is_empty(), "{forward:?}");
            assert!(after(forward, Some(&TlsInfo::default())).is_empty(), "{forward:?}");
        }
        assert!(after(ForwardClientCert::Sanitize, Some(&client())).is_empty());
    }

    #[test]
    fn the_identity_of_the_session_is_set_or_appended() {
        let element = "By=spiffe://td/ns/s/sa/s;\
            Hash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad;\
            Subject=\"CN=b,O=x\";URI=spiffe://td/ns/a/sa/b;DNS=b.a";
        assert_eq!(after(ForwardClientCert::SanitizeSet, Some(&client())), [element]);
        assert_eq!(
            after(ForwardClientCert::AppendForward, Some(&client())),
            [format!("By=forged,{element}")]
        );
        assert_eq!(after(ForwardClientCert::ForwardOnly, Some(&client())), ["By=forged"]);
    }

    #[test]
    fn certificates_are_url_encoded_pem() {
        let pem = url_encoded_pem(&[0xfb, 0xff, 0xfe, 0x00]);
        assert_eq!(
            pem,
            "-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A"
        );
    }
}
