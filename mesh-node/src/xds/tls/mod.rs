//! TLS contexts (`envoy.extensions.transport_sockets.tls.v3`) to rustls configurations.
//!
//! Trust is Envoy's, not a browser's: a peer is verified against `trusted_ca` and the configured subject
//! alternative names; host names are compared only where the configuration asks for it; without a
//! `trusted_ca` nothing is verified.

mod certificates;
mod parameters;
mod pins;
mod verify;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::TransportSocket;
use mesh_xds::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use mesh_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use mesh_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use mesh_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    Secret as SecretProto, TlsCertificate, UpstreamTlsContext,
};
use mesh_xds::prost::Message;
use rustls::{ClientConfig, ServerConfig};

use super::common::{boolean, data, enumeration, non_empty};
use super::config_source::need;
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, support};
use crate::model::Str;
use crate::model::cluster::{ProxyHeader, Transport};
use crate::model::source::NeedKind;
use crate::model::tls::{DownstreamTls, Secret, Template, TlsContext, UpstreamTls};

/// What a resource read beside its message, so that its hash changes with it.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<u64>);

impl Files {
    fn note(&mut self, content: &[u8]) {
        let mut hasher = ahash::RandomState::with_seeds(5, 6, 7, 8).build_hasher();
        hasher.write(content);
        self.0.push(hasher.finish());
    }

    pub(super) fn hashes(&self) -> &[u64] {
        &self.0
    }
}

/// A transport socket of a filter chain; `None` for plain text.
pub(super) fn downstream(
    at: At<'_>,
    socket: &TransportSocket,
    context: &Context<'_>,
    files: &mut Files,
) -> Result<Option<TlsContext<DownstreamTls>>, XdsError> {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(at.field("typed_config").invalid("is required"));
    };
    let at = at.field("typed_config");
    if mesh_xds::unpack::<RawBuffer>(config).is_some() {
        return Ok(None);
    }
    let Some(proto) = mesh_xds::unpack::<DownstreamTlsContext>(config) else {
        return Err(extension(at, config));
    };
    let proto = proto.map_err(|e| at.invalid(e.to_string()))?;
    let common = proto.common_tls_context.unwrap_or_default();
    let require = boolean(proto.require_client_certificate, false);
    let at = at.field("common_tls_context");
    contexts(at, common, context, files, move |at, common, parts| server(at, common, require, parts))
        .map(Some)
}

/// A transport socket of a cluster. `auto_san`: the peer's certificate must name the server that was asked for.
pub(super) fn upstream(
    at: At<'_>,
    socket: &TransportSocket,
    auto_san: bool,
    context: &Context<'_>,
    files: &mut Files,
) -> Result<Transport, XdsError> {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(at.field("typed_config").invalid("is required"));
    };
    let at = at.field("typed_config");
    if mesh_xds::unpack::<RawBuffer>(config).is_some() {
        return Ok(Transport::Raw);
    }
    if let Some(proto) = mesh_xds::unpack::<ProxyProtocolUpstreamTransport>(config) {
        let proto = proto.map_err(|e| at.invalid(e.to_string()))?;
        let version = proto.config.as_ref().map_or(0, |config| config.version);
        let version = match enumeration(at.field("config.version"), version)? {
            Version::V1 => ProxyHeader::V1,
            Version::V2 => ProxyHeader::V2,
        };
        let at = at.field("transport_socket");
        let inner = proto.transport_socket.as_ref().ok_or_else(|| at.invalid("is required"))?;
        return match upstream(at, inner, auto_san, context, files)? {
            Transport::Proxied(..) => Err(at.invalid("must not be of this type again")),
            inner => Ok(Transport::Proxied(version, Box::new(inner))),
        };
    }
    let Some(proto) = mesh_xds::unpack::<UpstreamTlsContext>(config) else {
        return Err(extension(at, config));
    };
    let proto = proto.map_err(|e| at.invalid(e.to_string()))?;
    let sni = non_empty(&proto.sni);
    files.note(&proto.encode_to_vec());
    let common = proto.common_tls_context.unwrap_or_default();
    let at = at.field("common_tls_context");
    let client = move |at: At<'_>, common: &CommonTlsContext, parts: &mut Parts<'_>| {
        client(at, common, sni.clone(), auto_san, parts)
    };
    Ok(Transport::Tls(contexts(at, common, context, files, client)?))
}

/// The context if all its secrets are known, else a template that waits for those that come apart from it.
fn contexts<T>(
    at: At<'_>,
    common: CommonTlsContext,
    context: &Context<'_>,
    files: &mut Files,
    build: impl Fn(At<'_>, &CommonTlsContext, &mut Parts<'_>) -> Result<T, XdsError> + Send + Sync + 'static,
) -> Result<TlsContext<T>, XdsError> {
    let mut names: Vec<Str> = Vec::new();
    for (field, config) in secret_configs(&common) {
        if config.sds_config.is_none() {
            continue;
        }
        let at = at.field(field);
        let scope = format!("sds.{}", config.name);
        let source = config.sds_config.as_ref();
        need(at.field("sds_config"), NeedKind::Secret, &config.name, &scope, source, context)?;
        if !names.iter().any(|name| **name == *config.name) {
            names.push(config.name.as_str().into());
        }
    }
    if names.is_empty() {
        let secret = |name: &str| context.secrets.get(name).cloned();
        let mut parts = Parts { secret: &secret, files };
        return Ok(TlsContext::Ready(Arc::new(build(at, &common, &mut parts)?)));
    }
    // What does not depend on the secrets is refused now.
    parameters::versions(at.field("tls_params"), common.tls_params.as_ref())?;
    let (path, fixed) = (at.to_string(), context.secrets.clone());
    Ok(TlsContext::Awaits(Arc::new(Template::new(names, move |secrets| {
        let secret = |name: &str| {
            let come = secrets.iter().find(|secret| *secret.name == *name);
            come.and_then(|secret| SecretProto::decode(&*secret.content).ok())
                .or_else(|| fixed.get(name).cloned())
        };
        let mut parts = Parts { secret: &secret, files: &mut Files::default() };
        build(At::root(&path), &common, &mut parts).map_err(|error| error.to_string())
    }))))
}

/// The references to secrets, each with its field.
fn secret_configs(common: &CommonTlsContext) -> Vec<(&'static str, &SdsSecretConfig)> {
    let own = &common.tls_certificate_sds_secret_configs;
    let mut all: Vec<_> = own.iter().map(|c| ("tls_certificate_sds_secret_configs", c)).collect();
    match &common.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            all.push(("validation_context_sds_secret_config", config));
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let config = combined.validation_context_sds_secret_config.as_ref();
            all.extend(config.map(|config| ("combined_validation_context", config)));
        }
        _ => {}
    }
    all
}

fn server(
    at: At<'_>,
    common: &CommonTlsContext,
    require: bool,
    parts: &mut Parts<'_>,
) -> Result<DownstreamTls, XdsError> {
    let provider = parameters::provider(at.field("tls_params"), common.tls_params.as_ref(), true)?;
    let certificates = parts.certificates(at, common, &provider)?;
    if certificates.is_empty() {
        let message = "needs one of tls_certificates, tls_certificate_sds_secret_configs";
        return Err(at.invalid(message));
    }
    let (at_trust, trust) = parts.trust(at, common)?;
    let verifies_clients = trust.as_ref().is_some_and(verify::verifies);
    let verifier = verify::client(
        At::root(&at_trust),
        trust.as_ref(),
        require,
        |at, source| parts.read(at, source),
        &provider,
    )?;
    let versions = parameters::versions(at.field("tls_params"), common.tls_params.as_ref())?;
    let (local_uri_sans, local_leaf) = (certificates[0].uri_sans(), certificates[0].leaf());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|e| at.field("tls_params").invalid(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificates::Certificates::new(certificates)));
    config.alpn_protocols = alpn(common);
    let without_alpn = (!config.alpn_protocols.is_empty()).then(|| {
        let mut config = config.clone();
        config.alpn_protocols = Vec::new();
        Arc::new(config)
    });
    Ok(DownstreamTls {
        config: Arc::new(config),
        without_alpn,
        require_client_certificate: require,
        verifies_clients,
        local_uri_sans,
        local_leaf,
    })
}

fn client(
    at: At<'_>,
    common: &CommonTlsContext,
    sni: Option<Str>,
    auto_san: bool,
    parts: &mut Parts<'_>,
) -> Result<UpstreamTls, XdsError> {
    let provider = parameters::provider(at.field("tls_params"), common.tls_params.as_ref(), false)?;
    let certificates = parts.certificates(at, common, &provider)?;
    let (at_trust, trust) = parts.trust(at, common)?;
    let verifier = verify::server(
        At::root(&at_trust),
        trust.as_ref(),
        auto_san,
        |at, source| parts.read(at, source),
        &provider,
    )?;
    let versions = parameters::versions(at.field("tls_params"), common.tls_params.as_ref())?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|e| at.field("tls_params").invalid(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let local_uri_sans = certificates.first().map(certificates::Certificate::uri_sans).unwrap_or_default();
    let local_leaf = certificates.first().map(certificates::Certificate::leaf);
    let mut config = match certificates.into_iter().next() {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(certificate)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn(common);
    let identity_hash = super::common::content_hash(common, parts.files.hashes());
    Ok(UpstreamTls { config: Arc::new(config), sni, local_uri_sans, local_leaf, identity_hash })
}

/// Compiles a secret that comes by SDS: it is read, so that one that cannot be used is refused, and kept as it
/// came.
pub fn secret(path: &str, proto: &SecretProto, context: &mut Context<'_>) -> Result<Secret, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    let at = At::root(path);
    let none = |_: &str| None;
    let mut parts = Parts { secret: &none, files: &mut Files::default() };
    let provider = parameters::provider(at, None, true)?;
    match &proto.r#type {
        Some(SecretType::TlsCertificate(certificate)) => {
            drop(parts.certificate(at.field("tls_certificate"), certificate, &provider)?);
        }
        Some(SecretType::ValidationContext(trust)) => {
            let at = at.field("validation_context");
            drop(verify::server(at, Some(trust), false, |at, source| parts.read(at, source), &provider)?);
        }
        _ => return Err(at.invalid("needs one of tls_certificate, validation_context")),
    }
    Ok(Secret { name: proto.name.as_str().into(), content: proto.encode_to_vec().into() })
}

fn alpn(common: &CommonTlsContext) -> Vec<Vec<u8>> {
    common.alpn_protocols.iter().map(|protocol| protocol.clone().into_bytes()).collect()
}

/// Gathers what a context refers to: files and secrets.
struct Parts<'a> {
    secret: &'a dyn Fn(&str) -> Option<SecretProto>,
    files: &'a mut Files,
}

impl Parts<'_> {
    fn read(
        &mut self,
        at: At<'_>,
        source: &mesh_xds::pb::envoy::config::core::v3::DataSource,
    ) -> Result<Vec<u8>, XdsError> {
        let content = data(at, source)?;
        self.files.note(&content);
        Ok(content)
    }

    /// Own certificates, inline or from static secrets.
    fn certificates(
        &mut self,
        at: At<'_>,
        common: &CommonTlsContext,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Vec<certificates::Certificate>, XdsError> {
        let mut found = Vec::new();
        let at_inline = at.field("tls_certificates");
        for (i, proto) in common.tls_certificates.iter().enumerate() {
            found.push(self.certificate(at_inline.index(i), proto, provider)?);
        }
        let at_secrets = at.field("tls_certificate_sds_secret_configs");
        for (i, config) in common.tls_certificate_sds_secret_configs.iter().enumerate() {
            let at = at_secrets.index(i);
            let SecretType::TlsCertificate(proto) = self.secret(at, config)? else {
                return Err(at
                    .field("name")
                    .invalid(format!("secret {:?} is not a tls_certificate", config.name)));
            };
            found.push(self.certificate(At::root(&secret_path(&config.name)), &proto, provider)?);
        }
        Ok(found)
    }

    fn certificate(
        &mut self,
        at: At<'_>,
        proto: &TlsCertificate,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<certificates::Certificate, XdsError> {
        let (at_chain, at_key) = (at.field("certificate_chain"), at.field("private_key"));
        let chain = proto.certificate_chain.as_ref().ok_or_else(|| at_chain.invalid("is required"))?;
        let key = proto.private_key.as_ref().ok_or_else(|| at_key.invalid("is required"))?;
        let chain = self.read(at_chain, chain)?;
        let key = self.read(at_key, key)?;
        certificates::Certificate::parse(at, &chain, &key, provider)
    }

    fn secret(&self, at: At<'_>, config: &SdsSecretConfig) -> Result<SecretType, XdsError> {
        let at = at.field("name");
        let secret = (self.secret)(&config.name).ok_or_else(|| {
            at.invalid(format!("unknown secret {:?}; add it to static_resources.secrets", config.name))
        })?;
        secret.r#type.ok_or_else(|| at.invalid(format!("secret {:?} is empty", config.name)))
    }

    /// The validation context and where it stands.
    fn trust(
        &mut self,
        at: At<'_>,
        common: &CommonTlsContext,
    ) -> Result<(String, Option<CertificateValidationContext>), XdsError> {
        Ok(match &common.validation_context_type {
            None => (at.to_string(), None),
            Some(ValidationContextType::ValidationContext(trust)) => {
                (at.field("validation_context").to_string(), Some(trust.clone()))
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
                let at = at.field("validation_context_sds_secret_config");
                (secret_path(&config.name), Some(self.validation_secret(at, config)?))
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let at = at.field("combined_validation_context");
                let mut trust = combined.default_validation_context.clone().unwrap_or_default();
                if let Some(config) = &combined.validation_context_sds_secret_config {
                    let at = at.field("validation_context_sds_secret_config");
                    let of_secret = self.validation_secret(at, config)?;
                    // As protobuf merges: the secret's values win, lists are joined.
                    trust
                        .merge(of_secret.encode_to_vec().as_slice())
                        .map_err(|e| at.invalid(e.to_string()))?;
                }
                (at.field("default_validation_context").to_string(), Some(trust))
            }
            Some(_) => return Err(at.unsupported()),
        })
    }

    fn validation_secret(
        &self,
        at: At<'_>,
        config: &SdsSecretConfig,
    ) -> Result<CertificateValidationContext, XdsError> {
        match self.secret(at, config)? {
            SecretType::ValidationContext(trust) => Ok(trust),
            _ => {
                let message = format!("secret {:?} is not a validation_context", config.name);
                Err(at.field("name").invalid(message))
            }
        }
    }
}

fn secret_path(name: &str) -> String {
    format!("static_resources.secrets ({name})")
}

#[cfg(test)]
mod tests;
