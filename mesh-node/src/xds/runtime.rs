//! `layered_runtime` of the bootstrap, and what servers give of it.

use std::collections::BTreeSet;

use mesh_xds::pb::envoy::config::bootstrap::v3::LayeredRuntime;
use mesh_xds::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use mesh_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;
use mesh_xds::pb::google::protobuf::Struct;
use serde_json::Value as Json;

use super::Context;
use super::config_source::need;
use super::error::{At, XdsError};
use super::support;
use crate::model::source::NeedKind;
use crate::runtime::{DiskLayer, Layer, LayerKind, Values, flattened};

/// The layers in order; what is to be asked of servers is noted as needed.
pub(super) fn layers(proto: &LayeredRuntime, context: &Context<'_>) -> Result<Vec<Layer>, XdsError> {
    let at = At::root("layered_runtime");
    let at = at.field("layers");
    let (mut names, mut admin) = (BTreeSet::new(), false);
    let mut layers = Vec::with_capacity(proto.layers.len());
    for (i, layer) in proto.layers.iter().enumerate() {
        let at = at.index(i);
        if !names.insert(&layer.name) {
            return Err(at
                .field("name")
                .invalid(format!("{:?} is another layer's too; change one", layer.name)));
        }
        let kind = match &layer.layer_specifier {
            Some(LayerSpecifier::StaticLayer(fields)) => {
                LayerKind::Static(values(at.field("static_layer"), fields)?)
            }
            Some(LayerSpecifier::DiskLayer(disk)) => LayerKind::Disk(DiskLayer {
                root: disk.symlink_root.as_str().into(),
                subdirectory: disk.subdirectory.trim_start_matches('/').into(),
                append_service_cluster: disk.append_service_cluster,
            }),
            Some(LayerSpecifier::AdminLayer(_)) if std::mem::replace(&mut admin, true) => {
                return Err(at.field("admin_layer").invalid("at most one layer may be of this kind"));
            }
            Some(LayerSpecifier::AdminLayer(_)) => LayerKind::Admin,
            Some(LayerSpecifier::RtdsLayer(served)) => {
                let at = at.field("rtds_layer");
                let at = at.field("rtds_config");
                let source = served.rtds_config.as_ref();
                need(at, NeedKind::Runtime, &served.name, "runtime.rtds", source, context)?;
                LayerKind::Served(served.name.clone())
            }
            None => {
                return Err(at.invalid("needs one of static_layer, disk_layer, admin_layer, rtds_layer"));
            }
        };
        layers.push(Layer { name: layer.name.clone(), kind });
    }
    Ok(layers)
}

fn values(at: At<'_>, fields: &Struct) -> Result<Values, XdsError> {
    let json = mesh_xds::to_json(fields);
    let fields = json.as_ref().and_then(Json::as_object).cloned().unwrap_or_default();
    flattened(&fields)
        .map_err(|key| at.field(&key).invalid("must be a number, a boolean, a string or a struct"))
}

/// A resource of `envoy.service.runtime.v3.Runtime`.
pub fn served(at: &str, proto: &RuntimeProto, context: &mut Context<'_>) -> Result<Values, XdsError> {
    support::check(at, proto, &mut context.ignored)?;
    let at = At::root(at);
    proto.layer.as_ref().map_or(Ok(Values::new()), |fields| values(at.field("layer"), fields))
}
