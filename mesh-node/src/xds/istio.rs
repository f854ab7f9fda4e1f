//! What Istio says in the metadata of clusters and endpoints.

use std::sync::Arc;

use mesh_xds::istio::metadata_exchange::MetadataExchange;
use mesh_xds::pb::envoy::config::cluster::v3::{Cluster, Filter};
use mesh_xds::pb::envoy::config::core::v3::Metadata;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use super::error::{At, XdsError};
use super::listener::extension;
use crate::model::Str;
use crate::model::cluster::{IstioCluster, IstioService};
use crate::telemetry::peer::Peer;

fn fields(metadata: Option<&Metadata>) -> Option<&Struct> {
    metadata?.filter_metadata.get("istio")
}

fn text<'a>(fields: &'a Struct, key: &str) -> &'a str {
    match fields.fields.get(key) {
        Some(Value { kind: Some(Kind::StringValue(text)) }) => text,
        _ => "",
    }
}

fn flag(fields: &Struct, key: &str) -> bool {
    matches!(fields.fields.get(key), Some(Value { kind: Some(Kind::BoolValue(true)) }))
}

/// `istio` of a cluster: its service, and how it is to be treated.
pub(super) fn cluster(at: At<'_>, proto: &Cluster) -> Result<IstioCluster, XdsError> {
    let exchange = exchange(at.field("filters"), &proto.filters)?;
    let Some(istio) = fields(proto.metadata.as_ref()) else {
        return Ok(IstioCluster { exchange, ..IstioCluster::default() });
    };
    let services = match istio.fields.get("services") {
        Some(Value { kind: Some(Kind::ListValue(list)) }) => &list.values[..],
        _ => &[],
    };
    let service = match services.first() {
        Some(Value { kind: Some(Kind::StructValue(service)) }) => {
            let host = text(service, "host");
            let name = match text(service, "name") {
                "" => host.split('.').next().unwrap_or_default(),
                name => name,
            };
            let namespace = text(service, "namespace").into();
            Some(IstioService { host: host.into(), name: name.into(), namespace })
        }
        _ => None,
    };
    Ok(IstioCluster {
        exchange,
        service,
        external: flag(istio, "external"),
        disable_mx: flag(istio, "disable_mx"),
        keep_alpn: text(istio, "alpn_override") == "false",
    })
}

/// `cluster.filters`: the metadata exchange is the only one that there is.
fn exchange(at: At<'_>, protos: &[Filter]) -> Result<Option<Str>, XdsError> {
    let mut protocol = None;
    for (i, proto) in protos.iter().enumerate() {
        let at = at.index(i);
        let Some(config) = &proto.typed_config else {
            return Err(at.field("typed_config").invalid("is required"));
        };
        match mesh_xds::unpack::<MetadataExchange>(config) {
            Some(Ok(exchange)) => protocol = Some(exchange.protocol.as_str().into()),
            Some(Err(error)) => return Err(at.field("typed_config").invalid(error.to_string())),
            None => return Err(extension(at.field("typed_config"), config)),
        }
    }
    Ok(protocol)
}

/// `istio.workload` of an endpoint.
pub(super) fn peer(metadata: Option<&Metadata>) -> Option<Arc<Peer>> {
    let workload = text(fields(metadata)?, "workload");
    Peer::of_endpoint(workload).map(Arc::new)
}
