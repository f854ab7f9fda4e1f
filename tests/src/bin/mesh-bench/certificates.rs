//! The key and certificates of the mutual TLS rows: one authority, one certificate per side.
//!
//! ECDSA P-256 with a SPIFFE name, as istiod issues them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};

use mesh_tests::redirect::PROXY_ID;

/// Files in PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub authority: PathBuf,
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `folder`, readable by the sidecar's user.
    pub fn make(folder: &FilePath) -> Result<Certificates> {
        let mut params = CertificateParams::default();
        // Without names of their own, issuer and subject would be equal: a self-signed certificate.
        params.distinguished_name.push(DnType::OrganizationName, "bench authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            vec![SanType::URI("spiffe://cluster.local/ns/default/sa/default".try_into()?)];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let certificates = Certificates {
            authority: folder.join("authority.pem"),
            chain: folder.join("chain.pem"),
            key: folder.join("key.pem"),
        };
        for (file, text) in [
            (&certificates.authority, authority.pem()),
            (&certificates.chain, certificate.pem()),
            (&certificates.key, key.serialize_pem()),
        ] {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        // The sidecar runs as a user of its own; mesh-node as root reads it as well.
        chown(&certificates.key, Some(PROXY_ID), Some(PROXY_ID))
            .context("giving the key to the sidecar's user")?;
        fs::set_permissions(&certificates.key, fs::Permissions::from_mode(0o600))?;
        Ok(certificates)
    }
}
