//! Signatures that scripts check (`importPublicKey`, `verifySignature`): RSA (PKCS #1 v1.5) and ECDSA, by the
//! library that TLS uses.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
    RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
    RSA_PKCS1_2048_8192_SHA384, UnparsedPublicKey, VerificationAlgorithm,
};
use mlua::UserData;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The public key of an RSA key pair (RFC 8017).
const RSA: &str = "1.2.840.113549.1.1.1";

/// A key, as X.509 writes it (`SubjectPublicKeyInfo`, DER).
#[derive(Debug)]
pub(super) struct PublicKey {
    rsa: bool,
    bytes: Vec<u8>,
}

impl UserData for PublicKey {}

impl PublicKey {
    /// What is no key verifies nothing.
    pub(super) fn of(der: &[u8]) -> Self {
        match SubjectPublicKeyInfo::from_der(der) {
            Ok((_, info)) => Self {
                rsa: info.algorithm.algorithm.to_id_string() == RSA,
                bytes: info.subject_public_key.data.to_vec(),
            },
            Err(_) => Self { rsa: true, bytes: Vec::new() },
        }
    }
}

/// # Errors
/// The reason, for the script.
pub(super) fn verify(hash: &str, key: &PublicKey, signature: &[u8], data: &[u8]) -> Result<(), String> {
    let algorithm: &dyn VerificationAlgorithm = match (hash.to_ascii_lowercase().as_str(), key.rsa) {
        ("sha1", true) => &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        ("sha256", true) => &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        ("sha384", true) => &RSA_PKCS1_2048_8192_SHA384,
        ("sha512", true) => &RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        ("sha256", false) => &ECDSA_P256_SHA256_ASN1,
        ("sha384", false) => &ECDSA_P384_SHA384_ASN1,
        _ => return Err(format!("{hash} is not supported.")),
    };
    let key = UnparsedPublicKey::new(algorithm, &key.bytes);
    key.verify(data, signature).map_err(|_| "Failed to verify digest. Error code: 0".to_owned())
}
