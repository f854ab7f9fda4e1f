//! What Istio says in the metadata of clusters and endpoints.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::Metadata;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

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
pub(super) fn cluster(metadata: Option<&Metadata>) -> IstioCluster {
    let Some(istio) = fields(metadata) else { return IstioCluster::default() };
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
    IstioCluster {
        service,
        external: flag(istio, "external"),
        disable_mx: flag(istio, "disable_mx"),
        keep_alpn: text(istio, "alpn_override") == "false",
    }
}

/// `istio.workload` of an endpoint.
pub(super) fn peer(metadata: Option<&Metadata>) -> Option<Arc<Peer>> {
    let workload = text(fields(metadata)?, "workload");
    Peer::of_endpoint(workload).map(Arc::new)
}
