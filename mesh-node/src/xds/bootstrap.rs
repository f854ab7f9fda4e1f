//! What of a bootstrap is not a resource: the address of the admin server, where dynamic resources come from.

use std::net::SocketAddr;

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap as Proto;
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::pb::google::protobuf::value::Kind;

use super::common::socket_address;
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, config_source, runtime, stats_config, support};
use crate::model::source::Dynamic;
use crate::runtime::Layer;
use crate::telemetry::stats::StatsShape;

/// What `bootstrap_extensions` may switch on: that internal addresses are known, which changes nothing by itself.
const EXTENSIONS: [&str; 1] = ["envoy.extensions.bootstrap.internal_listener.v3.InternalListener"];

/// What of a bootstrap is not a resource.
#[derive(Debug, Default)]
pub struct Bootstrap {
    /// `admin.address`.
    pub admin: Option<SocketAddr>,
    pub dynamic: Dynamic,
    /// `layered_runtime`
    pub runtime: Vec<Layer>,
    pub stats: Option<StatsShape>,
}

/// Checks the bootstrap as a whole.
pub fn convert(proto: &Proto, context: &mut Context<'_>) -> Result<Bootstrap, XdsError> {
    let mut whole = proto.clone();
    // Resources are checked one by one, so that each has its own error.
    whole.static_resources = None;
    support::check("", &whole, &mut context.ignored)?;
    let admin = match &proto.admin {
        Some(admin) if admin.address.is_some() => {
            let at = At::root("admin");
            Some(socket_address(at.field("address"), admin.address.as_ref())?)
        }
        _ => None,
    };
    let mut dynamic = match &proto.dynamic_resources {
        Some(dynamic) => config_source::dynamic(dynamic)?,
        None => Dynamic::default(),
    };
    let runtime = match &proto.layered_runtime {
        Some(proto) => runtime::layers(proto, context)?,
        None => Vec::new(),
    };
    let stats = proto.stats_config.as_ref().map(stats_config::convert).transpose()?;
    let at = At::root("bootstrap_extensions");
    for (i, given) in proto.bootstrap_extensions.iter().enumerate() {
        let config = given.typed_config.clone().unwrap_or_default();
        if !EXTENSIONS.contains(&&*mesh_xds::type_name(&config)) {
            let at = at.index(i);
            return Err(extension(at.field("typed_config"), &config));
        }
    }
    dynamic.runtime = context.needs.take();
    let local = proto.cluster_manager.as_ref().map_or("", |manager| &manager.local_cluster_name);
    if !local.is_empty() {
        let clusters = proto.static_resources.iter().flat_map(|resources| &resources.clusters);
        if !clusters.into_iter().any(|cluster| cluster.name == local) {
            let message = format!("unknown cluster {local:?}; add it to static_resources.clusters");
            return Err(At::root("cluster_manager").field("local_cluster_name").invalid(message));
        }
        dynamic.local_cluster = Some(local.into());
    }
    dynamic.name_table = proto.node.as_ref().is_some_and(captures_dns);
    Ok(Bootstrap { admin, dynamic, runtime, stats })
}

/// Istio's `DNS_CAPTURE`: the node wants to know all names of the mesh. Booleans of the metadata are text.
fn captures_dns(node: &Node) -> bool {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("DNS_CAPTURE"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text == "true",
        Some(Kind::BoolValue(given)) => *given,
        _ => false,
    }
}
