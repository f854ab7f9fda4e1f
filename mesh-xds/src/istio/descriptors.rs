//! The schema of Istio's own filters and of what it uses of Envoy's contrib, which the package of Envoy's messages does not have. Part of the build
//! script; the typed messages are in `mod.rs` beside this file.

use super::{Field, Message, Schema};
use crate::table::{MAP, REPEATED};

/// `FieldDescriptorProto.Type`.
const BOOL: u32 = 8;
const STRING: u32 = 9;
const MESSAGE: u32 = 11;
const ENUM: u32 = 14;

/// Number, name, kind and flags, type of messages and enums.
type Row = (u32, &'static str, u32, &'static str);

const MESSAGES: &[(&str, &[Row])] = &[
    (
        "udpa.type.v1.TypedStruct",
        &[(1, "type_url", STRING, ""), (2, "value", MESSAGE, "google.protobuf.Struct")],
    ),
    (
        "stats.PluginConfig",
        &[
            (6, "disable_host_header_fallback", BOOL, ""),
            (7, "tcp_reporting_duration", MESSAGE, "google.protobuf.Duration"),
            (8, "metrics", MESSAGE | REPEATED, "stats.MetricConfig"),
            (9, "definitions", MESSAGE | REPEATED, "stats.MetricDefinition"),
            (10, "reporter", ENUM, "stats.Reporter"),
            (11, "rotation_interval", MESSAGE, "google.protobuf.Duration"),
            (12, "graceful_deletion_interval", MESSAGE, "google.protobuf.Duration"),
        ],
    ),
    (
        "stats.MetricConfig",
        &[
            (1, "dimensions", MESSAGE | REPEATED | MAP, "stats.MetricConfig.DimensionsEntry"),
            (2, "name", STRING, ""),
            (3, "tags_to_remove", STRING | REPEATED, ""),
            (4, "match", STRING, ""),
            (5, "drop", BOOL, ""),
        ],
    ),
    ("stats.MetricConfig.DimensionsEntry", &[(1, "key", STRING, ""), (2, "value", STRING, "")]),
    (
        "stats.MetricDefinition",
        &[(1, "name", STRING, ""), (2, "value", STRING, ""), (3, "type", ENUM, "stats.MetricType")],
    ),
    (
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        &[(
            1,
            "alpn_override",
            MESSAGE | REPEATED,
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride",
        )],
    ),
    (
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride",
        &[
            (
                1,
                "upstream_protocol",
                ENUM,
                "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.Protocol",
            ),
            (2, "alpn_override", STRING | REPEATED, ""),
        ],
    ),
    (
        "io.istio.http.peer_metadata.Config",
        &[
            (
                1,
                "downstream_discovery",
                MESSAGE | REPEATED,
                "io.istio.http.peer_metadata.Config.DiscoveryMethod",
            ),
            (
                2,
                "upstream_discovery",
                MESSAGE | REPEATED,
                "io.istio.http.peer_metadata.Config.DiscoveryMethod",
            ),
            (
                3,
                "downstream_propagation",
                MESSAGE | REPEATED,
                "io.istio.http.peer_metadata.Config.PropagationMethod",
            ),
            (
                4,
                "upstream_propagation",
                MESSAGE | REPEATED,
                "io.istio.http.peer_metadata.Config.PropagationMethod",
            ),
            (5, "shared_with_upstream", BOOL, ""),
            (6, "additional_labels", STRING | REPEATED, ""),
        ],
    ),
    (
        "io.istio.http.peer_metadata.Config.DiscoveryMethod",
        &[
            (1, "baggage", MESSAGE, "io.istio.http.peer_metadata.Config.Baggage"),
            (2, "workload_discovery", MESSAGE, "io.istio.http.peer_metadata.Config.WorkloadDiscovery"),
            (3, "istio_headers", MESSAGE, "io.istio.http.peer_metadata.Config.IstioHeaders"),
        ],
    ),
    (
        "io.istio.http.peer_metadata.Config.PropagationMethod",
        &[
            (1, "istio_headers", MESSAGE, "io.istio.http.peer_metadata.Config.IstioHeaders"),
            (2, "baggage", MESSAGE, "io.istio.http.peer_metadata.Config.Baggage"),
        ],
    ),
    (
        "envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy",
        &[(1, "stat_prefix", STRING, ""), (2, "access_log", STRING, "")],
    ),
    ("io.istio.http.peer_metadata.Config.Baggage", &[]),
    ("io.istio.http.peer_metadata.Config.WorkloadDiscovery", &[]),
    ("io.istio.http.peer_metadata.Config.IstioHeaders", &[(1, "skip_external_clusters", BOOL, "")]),
    (
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        &[
            (1, "protocol", STRING, ""),
            (2, "enable_discovery", BOOL, ""),
            (3, "additional_labels", STRING | REPEATED, ""),
        ],
    ),
];

const ENUMS: &[(&str, &[&str])] = &[
    ("stats.Reporter", &["UNSPECIFIED", "SERVER_GATEWAY"]),
    ("stats.MetricType", &["COUNTER", "GAUGE", "HISTOGRAM"]),
    ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.Protocol", &["HTTP10", "HTTP11", "HTTP2"]),
];

/// Adds all of them.
pub(super) fn add(schema: &mut Schema) {
    for (name, rows) in MESSAGES {
        let fields = rows.iter().map(|&(number, name, flags, type_name)| Field {
            name: name.to_owned(),
            json_name: super::lower_camel(name),
            number,
            flags,
            type_name: type_name.to_owned(),
            ..Field::default()
        });
        let message =
            Message { map_entry: name.ends_with("Entry"), fields: fields.collect(), oneofs: Vec::new() };
        schema.messages.insert((*name).to_owned(), message);
    }
    for (name, values) in ENUMS {
        let values = values.iter().zip(0..).map(|(value, number)| ((*value).to_owned(), number));
        schema.enums.insert((*name).to_owned(), values.collect());
    }
}
