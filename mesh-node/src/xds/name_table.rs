//! `istio.networking.nds.v1.NameTable`.

use mesh_xds::istio::nds::NameTable as Proto;

use super::error::{At, XdsError};
use crate::model::name_table::{NameTable, NamedHost};

/// Reads a table; `path` is where it stands, for errors.
pub fn convert(path: &str, proto: &Proto) -> Result<NameTable, XdsError> {
    let at = At::root(path);
    let at = at.field("table");
    let mut table = NameTable::default();
    for (name, info) in &proto.table {
        let at = at.field(name);
        let at = at.field("ips");
        let ips = info.ips.iter().enumerate().map(|(i, ip)| {
            ip.parse().map_err(|_| at.index(i).invalid(format!("{ip:?} is not an IP address")))
        });
        let host = NamedHost {
            ips: ips.collect::<Result<_, _>>()?,
            registry: info.registry.as_str().into(),
            short_name: info.shortname.as_str().into(),
            namespace: info.namespace.as_str().into(),
        };
        table.hosts.insert(name.trim_end_matches('.').to_ascii_lowercase().into(), host);
    }
    Ok(table)
}
