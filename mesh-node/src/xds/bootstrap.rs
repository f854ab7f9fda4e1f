//! What of a bootstrap is not a resource: the address of the admin server.

use std::net::SocketAddr;

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;

use super::common::socket_address;
use super::error::{At, XdsError};
use super::{Context, support};

/// Checks the bootstrap as a whole and gives `admin.address`.
pub fn convert(proto: &Bootstrap, context: &mut Context<'_>) -> Result<Option<SocketAddr>, XdsError> {
    let mut whole = proto.clone();
    // Resources are checked one by one, so that each has its own error.
    whole.static_resources = None;
    support::check("", &whole, &mut context.ignored)?;
    match &proto.admin {
        Some(admin) if admin.address.is_some() => {
            let at = At::root("admin");
            socket_address(at.field("address"), admin.address.as_ref()).map(Some)
        }
        _ => Ok(None),
    }
}
