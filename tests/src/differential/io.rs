//! Streams with and without TLS, and the certificates of the suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, PublicKeyData, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
pub type BoxStream = Box<dyn Stream>;

const SERVER_SERIAL: u64 = 7;

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
            text.push(if at <= three.len() { digit } else { '=' });
        }
    }
    text
}

/// One authority and the certificates it signed, as PEM files: `ca`, `server`, `client`, with `.key` beside; its lists of
/// what it took back, `none.crl` and `server.crl`; and `server.hash` and `server.spki`, by which a certificate is pinned.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub folder: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Result<Certificates> {
        fs::create_dir_all(folder)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "differential authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);
        fs::write(folder.join("ca.pem"), authority.pem())?;
        for (serial, name) in [(SERVER_SERIAL, "server"), (8, "client")] {
            let mut params = CertificateParams::default();
            params.serial_number = Some(SerialNumber::from(serial));
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "differential");
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = vec![
                SanType::URI(format!("spiffe://cluster.local/ns/default/sa/{name}").try_into()?),
                SanType::DnsName(format!("{name}.test").try_into()?),
                SanType::DnsName(format!("*.{name}.test").try_into()?),
            ];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
            let hash: Vec<String> = sha256(certificate.der()).iter().map(|b| format!("{b:02x}")).collect();
            fs::write(folder.join(format!("{name}.hash")), hash.concat())?;
            fs::write(folder.join(format!("{name}.spki")), base64(&sha256(&key.subject_public_key_info())))?;
            fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        }
        for (name, revoked) in [("none", None), ("server", Some(SERVER_SERIAL))] {
            let revoked = revoked.map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2024, 1, 2),
                reason_code: None,
                invalidity_date: None,
            });
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(2024, 1, 2),
                next_update: date_time_ymd(2124, 1, 2),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.into_iter().collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            fs::write(folder.join(format!("{name}.crl")), list.signed_by(&issuer)?.pem()?)?;
        }
        Ok(Certificates { folder: folder.to_owned() })
    }

    fn chain(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_file_iter(self.folder.join(format!("{name}.pem")))?
            .collect::<Result<_, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_file(self.folder.join(format!("{name}.key")))?))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.folder.join("ca.pem"))? {
            roots.add(certificate?)?;
        }
        Ok(Arc::new(roots))
    }

    /// Accepts TLS as `server.test`.
    pub fn acceptor(&self, alpn: &[&str], verify_client: bool) -> Result<TlsAcceptor> {
        let (chain, key) = self.chain("server")?;
        let builder = ServerConfig::builder();
        let builder = if verify_client {
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(self.roots()?).build()?)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config).into())
    }

    /// Speaks TLS over `tcp`.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        sni: &str,
        alpn: &str,
        client_certificate: bool,
    ) -> Result<BoxStream> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots()?);
        let mut config = if client_certificate {
            let (chain, key) = self.chain("client")?;
            builder.with_client_auth_cert(chain, key)?
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(sni.to_owned())?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.context("TLS handshake")?;
        Ok(Box::new(tls))
    }
}
