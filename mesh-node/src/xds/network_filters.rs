//! Network filters of a chain, up to the one that serves the connection.

use std::sync::Arc;

use mesh_xds::istio::metadata_exchange::MetadataExchange as ExchangeProto;
use mesh_xds::istio::stats::PluginConfig;
use mesh_xds::pb::envoy::config::listener::v3::Filter;
use mesh_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use mesh_xds::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as LimitProto;
use mesh_xds::pb::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit as RateProto;
use mesh_xds::pb::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy as MongoProto;
use mesh_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac as RbacProto;
use mesh_xds::pb::envoy::extensions::filters::network::sni_cluster::v3::SniCluster;
use mesh_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig as SniConfig;
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::{Message, Name};

use super::common::{runtime_flag, timeout};
use super::error::{At, XdsError};
use super::listener::extension;
use super::{Context, forward_proxy, http_connection_manager, http_filters, rbac, tcp_proxy};
use crate::model::listener::Direction;
use crate::model::mongo::{MongoProxy, MongoStats};
use crate::model::network::{
    ConnectionLimit, ConnectionRateLimit, MetadataExchange, NetworkFilter, NetworkRbac,
};
use crate::telemetry::stats::Tags;

/// Envoy's `commands`.
const MONGO_COMMANDS: [&str; 3] = ["delete", "insert", "update"];
/// Envoy's contrib filter, of which no compiled message exists.
const MYSQL: &str = "envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy";

/// All filters of a chain; the last one is the TCP proxy or the HTTP connection manager.
pub(super) fn chain(
    at: At<'_>,
    protos: &[Filter],
    direction: Direction,
    context: &Context<'_>,
) -> Result<Vec<NetworkFilter>, XdsError> {
    let mut filters = Vec::with_capacity(protos.len());
    for (i, proto) in protos.iter().enumerate() {
        let at = at.index(i);
        let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
            return Err(at.field("typed_config").invalid("is required"));
        };
        let Some(filter) = one(at.field("typed_config"), config, direction, context)? else { continue };
        let serves = matches!(filter, NetworkFilter::TcpProxy(_) | NetworkFilter::HttpConnectionManager(_));
        if serves && i + 1 < protos.len() {
            return Err(at.invalid(format!("{:?} must be the last filter of its chain", proto.name)));
        }
        if !serves && i + 1 == protos.len() {
            let message =
                format!("{:?} must not be the last filter of its chain; it serves nothing", proto.name);
            return Err(at.invalid(message));
        }
        filters.push(filter);
    }
    if filters.is_empty() {
        return Err(at.invalid("needs a filter, such as envoy.filters.network.tcp_proxy"));
    }
    Ok(filters)
}

fn read<T: Message + Name + Default>(at: At<'_>, config: &Any) -> Result<Option<T>, XdsError> {
    mesh_xds::unpack::<T>(config).transpose().map_err(|e| at.invalid(e.to_string()))
}

/// `None`: a filter that only counts what passes.
fn one(
    at: At<'_>,
    config: &Any,
    direction: Direction,
    context: &Context<'_>,
) -> Result<Option<NetworkFilter>, XdsError> {
    Ok(Some(if let Some(proto) = read(at, config)? {
        NetworkFilter::TcpProxy(Arc::new(tcp_proxy::convert(at, &proto, context)?))
    } else if let Some(proto) = read(at, config)? {
        let manager = http_connection_manager::convert(at, &proto, direction, context)?;
        NetworkFilter::HttpConnectionManager(Arc::new(manager))
    } else if let Some(proto) = read::<RbacProto>(at, config)? {
        NetworkFilter::Rbac(Arc::new(rbac(at, &proto, context)?))
    } else if let Some(proto) = read::<PluginConfig>(at, config)? {
        NetworkFilter::IstioStats(Arc::new(http_filters::stats(at, &proto, direction, context)?))
    } else if let Some(proto) = read::<ExchangeProto>(at, config)? {
        let protocol = proto.protocol.as_str().into();
        NetworkFilter::MetadataExchange(Arc::new(MetadataExchange { protocol }))
    } else if let Some(proto) = read::<RateProto>(at, config)? {
        NetworkFilter::LocalRateLimit(Arc::new(rate_limit(at, &proto, context)?))
    } else if let Some(proto) = read::<LimitProto>(at, config)? {
        NetworkFilter::ConnectionLimit(Arc::new(connection_limit(at, &proto, context)?))
    } else if read::<SniCluster>(at, config)?.is_some() {
        NetworkFilter::SniCluster
    } else if let Some(proto) = read::<SniConfig>(at, config)? {
        NetworkFilter::SniForwardProxy(Arc::new(forward_proxy::by_sni(at, &proto)?))
    } else if let Some(proto) = read::<MongoProto>(at, config)? {
        NetworkFilter::MongoProxy(Arc::new(mongo(at, &proto, context)?))
    } else if mesh_xds::type_name(config) == MYSQL {
        return Ok(None);
    } else {
        return Err(extension(at, config));
    }))
}

fn rbac(at: At<'_>, proto: &RbacProto, context: &Context<'_>) -> Result<NetworkRbac, XdsError> {
    let counter = |name: &str| {
        let name = format!("{}rbac.{name}", proto.stat_prefix);
        context.stats.custom().counter(&name, || Tags { name: name.clone(), labels: Vec::new() })
    };
    Ok(NetworkRbac {
        rbac: rbac::convert(
            at,
            proto.rules.as_ref(),
            proto.shadow_rules.as_ref(),
            &proto.shadow_rules_stat_prefix,
        )?,
        delay_deny: timeout(at.field("delay_deny"), proto.delay_deny, None)?,
        stats: rbac::stats("", &proto.shadow_rules_stat_prefix, counter),
    })
}

fn mongo(at: At<'_>, proto: &MongoProto, context: &Context<'_>) -> Result<MongoProxy, XdsError> {
    let stats = MongoStats {
        custom: context.stats.custom().clone(),
        label: proto.stat_prefix.clone(),
        held: Default::default(),
    };
    let name = format!("mongo.{}.op_query_active", proto.stat_prefix);
    let commands: Vec<String> = match proto.commands.is_empty() {
        true => MONGO_COMMANDS.map(str::to_owned).into(),
        false => proto.commands.clone(),
    };
    Ok(MongoProxy {
        commands,
        delay: match &proto.delay {
            Some(delay) => Some(http_filters::delay(
                at.field("delay"),
                delay,
                ["mongo.fault.fixed_delay.duration_ms", "mongo.fault.fixed_delay.percent"],
            )?),
            None => None,
        },
        active: context.stats.custom().gauge(&name, || stats.tags("op_query_active")),
        stats,
    })
}

fn rate_limit(at: At<'_>, proto: &RateProto, context: &Context<'_>) -> Result<ConnectionRateLimit, XdsError> {
    let at_bucket = at.field("token_bucket");
    let bucket = proto.token_bucket.as_ref().ok_or_else(|| at_bucket.invalid("is required"))?;
    let name = format!("local_rate_limit.{}.rate_limited", proto.stat_prefix);
    Ok(ConnectionRateLimit {
        enabled: runtime_flag(proto.runtime_enabled.as_ref(), true),
        bucket: http_filters::bucket(at_bucket, bucket)?,
        rate_limited: context.stats.custom().counter(&name, || Tags {
            name: "local_rate_limit.rate_limited".to_owned(),
            labels: vec![("envoy_local_ratelimit_prefix".into(), proto.stat_prefix.clone())],
        }),
    })
}

fn connection_limit(
    at: At<'_>,
    proto: &LimitProto,
    context: &Context<'_>,
) -> Result<ConnectionLimit, XdsError> {
    let prefix = &proto.stat_prefix;
    let tags = |rest: &str| Tags {
        name: format!("connection_limit.{rest}"),
        labels: vec![("envoy_connection_limit_prefix".into(), prefix.clone())],
    };
    let custom = context.stats.custom();
    let max = proto.max_connections.as_ref().map_or(0, |max| max.value);
    Ok(ConnectionLimit {
        enabled: runtime_flag(proto.runtime_enabled.as_ref(), true),
        max,
        delay: timeout(at.field("delay"), proto.delay, None)?,
        active: custom
            .gauge(&format!("connection_limit.{prefix}.active_connections"), || tags("active_connections")),
        limited: custom.counter(&format!("connection_limit.{prefix}.limited_connections"), || {
            tags("limited_connections")
        }),
    })
}
