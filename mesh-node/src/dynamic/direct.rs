//! Connections to xDS servers without a cluster (`google_grpc`): by name, from the node, TLS from files; and the
//! tokens that their streams show.

use std::io;
use std::sync::Arc;

use mesh_xds::client::{Connect, Connecting, Credentials, Io};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::model::Str;
use crate::model::source::{Data, ServerTls, Token};

/// Connects to an address.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) host: Str,
    pub(super) port: u16,
    pub(super) tls: Option<ServerTls>,
}

impl Connect for Direct {
    fn connect(&self) -> Connecting {
        let (host, port, tls) = (self.host.clone(), self.port, self.tls.clone());
        Box::pin(async move {
            let io = TcpStream::connect((&*host, port)).await?;
            io.set_nodelay(true)?;
            let Some(tls) = tls else { return Ok(Box::new(io) as Box<dyn Io>) };
            let config = client_config(&tls).map_err(io::Error::other)?;
            let name = ServerName::try_from(tls.server_name.to_string()).map_err(io::Error::other)?;
            let io = TlsConnector::from(Arc::new(config)).connect(name, io).await?;
            Ok(Box::new(io) as Box<dyn Io>)
        })
    }
}

/// Reads the files anew, so that a certificate that was replaced is used from the next connection on.
fn client_config(tls: &ServerTls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.roots)? {
        roots.add(certificate).map_err(|error| format!("root_certs: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key.read()?)
                .map_err(|error| format!("private_key: {error}"))?;
            builder
                .with_client_auth_cert(certificates(chain)?, key)
                .map_err(|error| format!("cert_chain: {error}"))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(data: &Data) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = data.read()?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| format!("{data:?}: {error}"))?;
    if all.is_empty() { Err(format!("{data:?} holds no certificate")) } else { Ok(all) }
}

/// Headers that are always the same, and tokens that may change.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) headers: Vec<(String, String)>,
    pub(super) tokens: Vec<Token>,
}

impl Credentials for Shown {
    fn metadata(&self) -> Result<Vec<(String, String)>, String> {
        let mut all = self.headers.clone();
        for token in &self.tokens {
            let secret = String::from_utf8(token.secret.read()?)
                .map_err(|_| format!("{:?} is not text", token.secret))?;
            all.push((token.header.clone(), format!("{}{}", token.prefix, secret.trim())));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_that_was_renewed_is_shown_by_the_next_stream() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\n").unwrap();
        let token = Token {
            header: "authorization".to_owned(),
            prefix: "Bearer ".to_owned(),
            secret: Data::File(file.path().to_owned()),
        };
        let shown = Shown { headers: vec![("a".to_owned(), "b".to_owned())], tokens: vec![token] };
        let header = |value: &str| ("authorization".to_owned(), value.to_owned());
        assert_eq!(shown.metadata().unwrap()[1], header("Bearer one"));
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(shown.metadata().unwrap()[1], header("Bearer two"));
        std::fs::remove_file(file.path()).unwrap();
        assert!(shown.metadata().unwrap_err().starts_with("cannot read "));
    }
}
