//! What is asked of certificates beside their chain: hashes that they must have, and lists of those revoked.

use mesh_xds::pb::envoy::config::core::v3::DataSource;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::CertificateValidationContext;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::{CertificateError, Error};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use crate::telemetry::{base64, certificate};
use crate::xds::error::{At, XdsError};

/// SHA-256 digests in hexadecimal digits; a certificate must have one of them, if there are any.
#[derive(Debug, Default)]
pub(super) struct Pins {
    certificates: Vec<String>,
    keys: Vec<String>,
}

impl Pins {
    pub(super) fn of(at: At<'_>, proto: &CertificateValidationContext) -> Result<Self, XdsError> {
        let at_hash = at.field("verify_certificate_hash");
        let hash = |(i, text): (usize, &String)| {
            let digits = text.replace(':', "").to_ascii_lowercase();
            match digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                true => Ok(digits),
                false => Err(at_hash.index(i).invalid("must be a SHA-256 digest in hexadecimal digits")),
            }
        };
        let at_key = at.field("verify_certificate_spki");
        let key = |(i, text): (usize, &String)| match base64::decode(text.as_bytes()) {
            Some(bytes) if bytes.len() == 32 => {
                Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            _ => Err(at_key.index(i).invalid("must be a SHA-256 digest in base64")),
        };
        Ok(Self {
            certificates: proto
                .verify_certificate_hash
                .iter()
                .enumerate()
                .map(hash)
                .collect::<Result<_, _>>()?,
            keys: proto.verify_certificate_spki.iter().enumerate().map(key).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.keys.is_empty()
    }

    pub(super) fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.is_empty() || self.certificates.contains(&certificate::sha256_hex(leaf)) {
            return Ok(());
        }
        if !self.keys.is_empty() {
            let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
            if self.keys.contains(&certificate::sha256_hex(parsed.public_key().raw)) {
                return Ok(());
            }
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// `crl`: for every issuer of a certificate that is verified there must be a list.
#[derive(Debug)]
pub(super) struct Revoked {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// `only_verify_leaf_cert_crl`
    leaf_only: bool,
}

impl Revoked {
    pub(super) fn of(
        at: At<'_>,
        proto: &CertificateValidationContext,
        mut read: impl FnMut(At<'_>, &DataSource) -> Result<Vec<u8>, XdsError>,
    ) -> Result<Option<Self>, XdsError> {
        let Some(source) = &proto.crl else { return Ok(None) };
        let at = at.field("crl");
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&read(at, source)?).collect();
        let lists = lists.map_err(|error| at.invalid(format!("is not PEM: {error}")))?;
        if lists.is_empty() || lists.iter().any(|list| CertificateRevocationList::from_der(list).is_err()) {
            return Err(at.invalid("holds no PEM list of revoked certificates"));
        }
        Ok(Some(Self { lists, leaf_only: proto.only_verify_leaf_cert_crl }))
    }

    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let above = intermediates.iter().filter(|_| !self.leaf_only);
        std::iter::once(leaf).chain(above).try_for_each(|certificate| self.check_one(certificate, now))
    }

    fn check_one(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let lists = self.lists.iter().filter_map(|list| CertificateRevocationList::from_der(list).ok());
        let mut known = false;
        for (_, list) in lists.filter(|(_, list)| list.issuer() == certificate.issuer()) {
            if list.next_update().is_some_and(|next| next.timestamp() < now) {
                return Err(CertificateError::ExpiredRevocationList.into());
            }
            if list.iter_revoked_certificates().any(|revoked| *revoked.serial() == certificate.serial) {
                return Err(CertificateError::Revoked.into());
            }
            known = true;
        }
        if known { Ok(()) } else { Err(CertificateError::UnknownRevocationStatus.into()) }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;

    fn refusal(result: Result<(), Error>) -> Option<CertificateError> {
        match result {
            Ok(()) => None,
            Err(Error::InvalidCertificate(error)) => Some(error),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_certificate_on_its_issuers_list_is_refused_and_so_is_one_without_a_list() {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::KeyCertSign];
        let root = Issuer::new(authority, KeyPair::generate().unwrap());
        let leaf = |serial: u64| {
            let mut params = CertificateParams::new(vec!["leaf.test".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().der().clone()
        };
        let list = |next_year: i32| {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from(7u64),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1),
                next_update: date_time_ymd(next_year, 1, 1),
                crl_number: SerialNumber::from(1u64),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let pem = params.signed_by(&root).unwrap().pem().unwrap();
            let source = DataSource {
                specifier: Some(mesh_xds::pb::envoy::config::core::v3::data_source::Specifier::InlineString(
                    pem,
                )),
                ..DataSource::default()
            };
            let proto = CertificateValidationContext { crl: Some(source), ..Default::default() };
            Revoked::of(At::root("t"), &proto, crate::xds::common::data).unwrap().unwrap()
        };
        let now = UnixTime::now();
        let (good, bad) = (leaf(8), leaf(7));
        let lists = list(2100);
        assert_eq!(refusal(lists.check(&good, &[], now)), None);
        assert_eq!(refusal(lists.check(&bad, &[], now)), Some(CertificateError::Revoked));
        assert_eq!(
            refusal(lists.check(&good, std::slice::from_ref(&bad), now)),
            Some(CertificateError::Revoked)
        );
        let old = list(2021);
        assert_eq!(refusal(old.check(&good, &[], now)), Some(CertificateError::ExpiredRevocationList));
        let mut other = CertificateParams::new(vec!["x.test".to_owned()]).unwrap();
        other.distinguished_name.push(rcgen::DnType::CommonName, "another authority");
        let foreign = other.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(
            refusal(lists.check(foreign.der(), &[], now)),
            Some(CertificateError::UnknownRevocationStatus)
        );
    }

    #[test]
    fn a_certificate_must_have_one_of_the_digests_that_are_given() {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["leaf.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let digest = certificate::sha256_hex(leaf.der());
        let (_, parsed) = X509Certificate::from_der(leaf.der()).unwrap();
        let of_key = certificate::sha256_hex(parsed.public_key().raw);
        let bytes: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&of_key[2 * i..2 * i + 2], 16).unwrap()).collect();
        let pins = |hashes: &[&str], keys: &[String]| {
            let proto = CertificateValidationContext {
                verify_certificate_hash: hashes.iter().map(|hash| (*hash).to_owned()).collect(),
                verify_certificate_spki: keys.to_vec(),
                ..Default::default()
            };
            Pins::of(At::root("t"), &proto)
        };
        let colons: Vec<_> = (0..32).map(|i| digest[2 * i..2 * i + 2].to_ascii_uppercase()).collect();
        let other = "0".repeat(64);
        assert!(pins(&[], &[]).unwrap().check(leaf.der()).is_ok());
        assert!(pins(&[&digest], &[]).unwrap().check(leaf.der()).is_ok());
        assert!(pins(&[&colons.join(":")], &[]).unwrap().check(leaf.der()).is_ok());
        assert!(pins(&[&other], &[]).unwrap().check(leaf.der()).is_err());
        assert!(pins(&[&other], &[base64::encode(&bytes)]).unwrap().check(leaf.der()).is_ok());
        assert!(pins(&["12"], &[]).is_err());
    }
}
