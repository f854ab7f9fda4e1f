//! Certificates as logs and headers show them. They are read when they are asked for: few formats do.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls_session::rfc2253;

/// SHA-256 of a certificate in DER, lower-case hexadecimal digits.
pub fn sha256_hex(der: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    if let Some(suite) = TLS13_AES_128_GCM_SHA256.tls13() {
        for byte in suite.common.hash_provider.hash(der).as_ref() {
            let _ = write!(hex, "{byte:02x}");
        }
    }
    hex
}

/// SHA-1 of a certificate in DER, likewise: a name for it, not a proof.
pub(super) fn sha1_hex(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    digest.as_ref().iter().fold(String::with_capacity(40), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// PEM with the characters escaped that Envoy escapes.
pub fn url_encoded_pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    let mut column = 0;
    for chunk in der.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i)) as usize & 63];
            match digit {
                _ if i > chunk.len() => out.push_str("%3D"),
                b'+' => out.push_str("%2B"),
                b'/' => out.push_str("%2F"),
                digit => out.push(char::from(digit)),
            }
        }
        column += 4;
        if column == 64 {
            out.push_str("%0A");
            column = 0;
        }
    }
    if column != 0 {
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
    out
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

pub(super) fn serial(der: &[u8]) -> Option<String> {
    Some(serial_digits(&parsed(der)?))
}

/// The serial number in lower-case hexadecimal digits, two a byte, without leading zero bytes.
pub fn serial_digits(certificate: &X509Certificate<'_>) -> String {
    let digits = format!("{:x}", certificate.tbs_certificate.serial);
    if digits.len() % 2 == 1 { format!("0{digits}") } else { digits }
}

/// Whom a certificate names, or who issued it, as RFC 2253 writes it.
pub(super) fn subject(der: &[u8], issuer: bool) -> Option<String> {
    let certificate = parsed(der)?;
    Some(rfc2253(if issuer { certificate.issuer() } else { certificate.subject() }))
}

/// When a certificate's validity begins or ends.
pub(super) fn validity(der: &[u8], end: bool) -> Option<SystemTime> {
    let validity = parsed(der)?.tbs_certificate.validity;
    let at = if end { validity.not_after } else { validity.not_before };
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).ok()?))
}

/// Which alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum San {
    Uri,
    Dns,
    Ip,
    Email,
}

/// The alternative names of one kind, joined by commas.
pub(super) fn sans(der: &[u8], kind: San) -> Option<String> {
    let certificate = parsed(der)?;
    let names = certificate.subject_alternative_name().ok()??;
    let texts = names.value.general_names.iter().filter_map(|name| match (name, kind) {
        (GeneralName::URI(uri), San::Uri) => Some((*uri).to_owned()),
        (GeneralName::DNSName(name), San::Dns) => Some((*name).to_owned()),
        (GeneralName::IPAddress(octets), San::Ip) => address(octets),
        (GeneralName::RFC822Name(mail), San::Email) => Some((*mail).to_owned()),
        _ => None,
    });
    let joined = texts.collect::<Vec<_>>().join(",");
    (!joined.is_empty()).then_some(joined)
}

fn address(octets: &[u8]) -> Option<String> {
    let address = match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
    };
    Some(address.to_string())
}
