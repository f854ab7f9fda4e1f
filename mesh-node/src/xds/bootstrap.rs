//! What of a bootstrap is not a resource: the address of the admin server, where dynamic resources come from.

use std::net::SocketAddr;

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap as Proto;

use super::common::socket_address;
use super::error::{At, XdsError};
use super::{Context, config_source, support};
use crate::model::source::Dynamic;

/// What of a bootstrap is not a resource.
#[derive(Debug, Default)]
pub struct Bootstrap {
    /// `admin.address`.
    pub admin: Option<SocketAddr>,
    pub dynamic: Dynamic,
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
    let dynamic = match &proto.dynamic_resources {
        Some(dynamic) => config_source::dynamic(dynamic)?,
        None => Dynamic::default(),
    };
    Ok(Bootstrap { admin, dynamic })
}
