//! `envoy.config.core.v3.GrpcService`: a server, how it is reached and what it is shown.

use mesh_xds::pb::envoy::config::core::v3::data_source::Specifier;
use mesh_xds::pb::envoy::config::core::v3::grpc_service::google_grpc::call_credentials::CredentialSpecifier as Call;
use mesh_xds::pb::envoy::config::core::v3::grpc_service::google_grpc::call_credentials::metadata_credentials_from_plugin::ConfigType;
use mesh_xds::pb::envoy::config::core::v3::grpc_service::google_grpc::channel_args::value::ValueSpecifier;
use mesh_xds::pb::envoy::config::core::v3::grpc_service::google_grpc::channel_credentials::CredentialSpecifier as Channel;
use mesh_xds::pb::envoy::config::core::v3::grpc_service::google_grpc::{CallCredentials, SslCredentials};
use mesh_xds::pb::envoy::config::core::v3::grpc_service::{GoogleGrpc, TargetSpecifier};
use mesh_xds::pb::envoy::config::core::v3::{DataSource, GrpcService};
use mesh_xds::pb::envoy::config::grpc_credential::v3::FileBasedMetadataConfig;

use super::error::{At, XdsError};
use super::listener::extension;
use crate::model::source::{Data, GrpcServer, GrpcTarget, ServerTls, Token};

/// Arguments of Google's client that change what a server sees.
const SSL_NAME: &str = "grpc.ssl_target_name_override";
const AUTHORITY: &str = "grpc.default_authority";

pub(super) fn server(at: At<'_>, proto: &GrpcService) -> Result<GrpcServer, XdsError> {
    let metadata = proto.initial_metadata.iter().map(|h| (h.key.to_lowercase(), h.value.clone())).collect();
    match &proto.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) => {
            let authority =
                if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
            Ok(GrpcServer {
                target: GrpcTarget::Cluster(target.cluster_name.as_str().into()),
                authority: authority.as_str().into(),
                metadata,
                tokens: Vec::new(),
                max_message_bytes: target.max_receive_message_length.map(|max| max.value),
            })
        }
        Some(TargetSpecifier::GoogleGrpc(google)) => {
            let at = at.field("google_grpc");
            let (host, port) = target(at.field("target_uri"), &google.target_uri)?;
            let name = argument(google, SSL_NAME).unwrap_or(host);
            let tls = match google.channel_credentials.as_ref().and_then(|c| c.credential_specifier.as_ref())
            {
                Some(Channel::SslCredentials(ssl)) => {
                    let at = at.field("channel_credentials");
                    Some(tls(at.field("ssl_credentials"), ssl, name)?)
                }
                // Plain text, as Envoy has it without credentials.
                _ => None,
            };
            let at_call = at.field("call_credentials");
            let calls = google.call_credentials.iter().enumerate();
            let tokens = calls.map(|(i, call)| token(at_call.index(i), call)).collect::<Result<_, _>>()?;
            let authority = argument(google, AUTHORITY).or(argument(google, SSL_NAME));
            let authority = authority.map_or_else(|| format!("{host}:{port}"), str::to_owned);
            Ok(GrpcServer {
                target: GrpcTarget::Address { host: host.into(), port, tls },
                authority: authority.into(),
                metadata,
                tokens,
                max_message_bytes: None,
            })
        }
        None => Err(at.invalid("needs envoy_grpc with the name of a static cluster, or google_grpc")),
    }
}

fn argument<'a>(google: &'a GoogleGrpc, name: &str) -> Option<&'a str> {
    match google.channel_args.as_ref()?.args.get(name)?.value_specifier.as_ref()? {
        ValueSpecifier::StringValue(text) => Some(text),
        ValueSpecifier::IntValue(_) => None,
    }
}

/// `host:port`, with `dns:` before it or not.
fn target<'a>(at: At<'_>, uri: &'a str) -> Result<(&'a str, u16), XdsError> {
    let address = uri.strip_prefix("dns:").unwrap_or(uri);
    let address = address.trim_start_matches('/');
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let parts = parts.map(|(host, port)| (host.trim_matches(['[', ']']), port));
    parts.filter(|(host, _)| !host.is_empty()).ok_or_else(|| at.invalid(format!("{uri:?} is not host:port")))
}

fn tls(at: At<'_>, ssl: &SslCredentials, name: &str) -> Result<ServerTls, XdsError> {
    let roots = match &ssl.root_certs {
        Some(roots) => data(at.field("root_certs"), roots)?,
        None => return Err(at.field("root_certs").invalid("is required")),
    };
    let identity = match (&ssl.cert_chain, &ssl.private_key) {
        (Some(chain), Some(key)) => {
            Some((data(at.field("cert_chain"), chain)?, data(at.field("private_key"), key)?))
        }
        (None, None) => None,
        _ => return Err(at.invalid("needs both of cert_chain, private_key, or none")),
    };
    Ok(ServerTls { server_name: name.into(), roots, identity })
}

fn token(at: At<'_>, proto: &CallCredentials) -> Result<Token, XdsError> {
    match &proto.credential_specifier {
        Some(Call::AccessToken(token)) => Ok(Token {
            header: "authorization".to_owned(),
            prefix: "Bearer ".to_owned(),
            secret: Data::Inline(token.as_bytes().into()),
        }),
        Some(Call::FromPlugin(plugin)) => {
            let at = at.field("from_plugin");
            let at = at.field("typed_config");
            let Some(ConfigType::TypedConfig(config)) = &plugin.config_type else {
                return Err(at.invalid("is required"));
            };
            let Some(file) = mesh_xds::unpack::<FileBasedMetadataConfig>(config) else {
                return Err(extension(at, config));
            };
            let file = file.map_err(|error| at.invalid(error.to_string()))?;
            let at_secret = at.field("secret_data");
            let secret = file.secret_data.as_ref().ok_or_else(|| at_secret.invalid("is required"))?;
            let given = file.header_key.to_lowercase();
            Ok(Token {
                header: if given.is_empty() { "authorization".to_owned() } else { given },
                prefix: file.header_prefix,
                secret: data(at_secret, secret)?,
            })
        }
        // The table of supported fields has refused the others.
        _ => Err(at.invalid("needs one of access_token, from_plugin")),
    }
}

fn data(at: At<'_>, source: &DataSource) -> Result<Data, XdsError> {
    Ok(match &source.specifier {
        Some(Specifier::Filename(file)) => Data::File(file.into()),
        _ => Data::Inline(super::common::data(at, source)?.into()),
    })
}

#[cfg(test)]
mod tests {
    use mesh_xds::{Node, from_node};

    use super::*;

    fn read(yaml: &str) -> Result<GrpcServer, String> {
        let proto: GrpcService = from_node(&Node::parse(yaml).unwrap()).unwrap();
        server(At::root("grpc_services[0]"), &proto).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_file_and_roots_make_a_server_of_istio_reachable_as_its_agent_does() {
        let server = read(
            "google_grpc: {target_uri: 'istiod.istio-system.svc:15012', stat_prefix: s, \
             channel_credentials: {ssl_credentials: {root_certs: {filename: /roots.pem}}}, \
             call_credentials: [{from_plugin: {name: envoy.grpc_credentials.file_based_metadata, \
             typed_config: {'@type': type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, \
             secret_data: {filename: /token}, header_prefix: 'Bearer '}}}]}",
        )
        .unwrap();
        assert_eq!(&*server.authority, "istiod.istio-system.svc:15012");
        let GrpcTarget::Address { host, port, tls: Some(tls) } = server.target else { panic!() };
        assert_eq!((&*host, port), ("istiod.istio-system.svc", 15012));
        assert_eq!(&*tls.server_name, "istiod.istio-system.svc");
        assert_eq!(tls.roots, Data::File("/roots.pem".into()));
        let token = &server.tokens[0];
        assert_eq!((token.header.as_str(), token.prefix.as_str()), ("authorization", "Bearer "));
        assert_eq!(token.secret, Data::File("/token".into()));
    }

    #[test]
    fn the_name_in_the_certificate_may_be_another() {
        let server = read(
            "google_grpc: {target_uri: 'dns:///127.0.0.1:1', stat_prefix: s, \
             channel_credentials: {ssl_credentials: {root_certs: {inline_string: x}}}, \
             channel_args: {args: {grpc.ssl_target_name_override: {string_value: istiod}}}}",
        )
        .unwrap();
        let GrpcTarget::Address { host, tls: Some(tls), .. } = server.target else { panic!() };
        assert_eq!((&*host, &*tls.server_name, &*server.authority), ("127.0.0.1", "istiod", "istiod"));
    }

    #[test]
    fn a_target_without_port_and_tls_without_roots_are_refused_by_name() {
        let at = "grpc_services[0].google_grpc";
        assert_eq!(
            read("google_grpc: {target_uri: istiod, stat_prefix: s}"),
            Err(format!("{at}.target_uri: \"istiod\" is not host:port"))
        );
        assert_eq!(
            read(
                "google_grpc: {target_uri: 'a:1', stat_prefix: s, channel_credentials: {ssl_credentials: {}}}"
            ),
            Err(format!("{at}.channel_credentials.ssl_credentials.root_certs: is required"))
        );
    }
}
