//! The statistics of each kind of resource, as fields named as Envoy names them.
//!
//! A field `x` of the group of `cluster.NAME.` is `cluster.NAME.x`; where Envoy's name has a dot the field
//! has an underscore and the name is given beside it. A field belongs here only if something writes it.

use super::{Counter, Gauge, Histogram, ResponseCodes};

/// What one field of a group is.
pub(super) enum Stat<'a> {
    Counter(&'a Counter),
    Gauge(&'a Gauge),
    Histogram(&'a Histogram),
}

/// A set of statistics with a common prefix.
pub(super) trait Group: Send + Sync {
    /// Calls `visit` with the name below the prefix and the statistic, for each.
    fn visit(&self, visit: &mut dyn FnMut(&str, Stat<'_>));
}

macro_rules! group {
    (
        $(#[$meta:meta])* $group:ident {
            counters { $($counter:ident $(as $counter_name:literal)?,)* }
            gauges { $($gauge:ident $(as $gauge_name:literal)?,)* }
            histograms { $($histogram:ident,)* }
            $(codes { $codes:ident as $codes_prefix:literal })?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $group {
            $(pub $counter: Counter,)*
            $(pub $gauge: Gauge,)*
            $(pub $histogram: Histogram,)*
            $(pub $codes: ResponseCodes,)?
        }

        impl Group for $group {
            fn visit(&self, visit: &mut dyn FnMut(&str, Stat<'_>)) {
                $(visit(name!($counter $(, $counter_name)?), Stat::Counter(&self.$counter));)*
                $(visit(name!($gauge $(, $gauge_name)?), Stat::Gauge(&self.$gauge));)*
                $(visit(stringify!($histogram), Stat::Histogram(&self.$histogram));)*
                $(for (status, counter) in self.$codes.counters() {
                    visit(&format!(concat!($codes_prefix, "{}"), status), Stat::Counter(counter));
                })?
            }
        }
    };
}

macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident, $name:literal) => {
        $name
    };
}

group! {
    /// `listener.ADDRESS.*`
    ListenerStats {
        counters {
            downstream_cx_total,
            downstream_cx_destroy,
            downstream_cx_overflow,
            downstream_cx_overload_reject,
            downstream_pre_cx_timeout,
            no_filter_chain_match,
            ssl_handshake as "ssl.handshake",
            ssl_connection_error as "ssl.connection_error",
            ssl_fail_verify_no_cert as "ssl.fail_verify_no_cert",
            downstream_context_secrets_not_ready
                as "server_ssl_socket_factory.downstream_context_secrets_not_ready",
        }
        gauges { downstream_cx_active, }
        histograms { downstream_cx_length_ms, }
    }
}

group! {
    /// `tcp.PREFIX.*`
    TcpStats {
        counters {
            downstream_cx_total,
            downstream_cx_no_route,
            downstream_cx_rx_bytes_total,
            downstream_cx_tx_bytes_total,
            idle_timeout,
            max_downstream_connection_duration,
        }
        gauges {}
        histograms {}
    }
}

group! {
    /// `http.PREFIX.*`
    HttpStats {
        counters {
            downstream_cx_total,
            downstream_cx_destroy,
            downstream_cx_http1_total,
            downstream_cx_http2_total,
            downstream_cx_ssl_total,
            downstream_cx_protocol_error,
            downstream_cx_idle_timeout,
            downstream_cx_max_duration_reached,
            downstream_cx_max_requests_reached,
            downstream_cx_drain_close,
            downstream_cx_upgrades_total,
            downstream_cx_rx_bytes_total,
            downstream_cx_tx_bytes_total,
            downstream_rq_total,
            downstream_rq_http1_total,
            downstream_rq_http2_total,
            downstream_rq_completed,
            downstream_rq_1xx,
            downstream_rq_2xx,
            downstream_rq_3xx,
            downstream_rq_4xx,
            downstream_rq_5xx,
            downstream_rq_timeout,
            downstream_rq_idle_timeout,
            downstream_rq_header_timeout,
            downstream_rq_max_duration_reached,
            downstream_rq_overload_close,
            downstream_rq_rx_reset,
            downstream_rq_tx_reset,
            no_route,
            no_cluster,
            rq_direct_response,
            rq_redirect,
            rq_total,
            tracing_client_enabled as "tracing.client_enabled",
            tracing_health_check as "tracing.health_check",
            tracing_not_traceable as "tracing.not_traceable",
            tracing_random_sampling as "tracing.random_sampling",
            tracing_service_forced as "tracing.service_forced",
        }
        gauges {
            downstream_cx_active,
            downstream_cx_http1_active,
            downstream_cx_http2_active,
            downstream_cx_upgrades_active,
            downstream_rq_active,
        }
        histograms { downstream_rq_time, downstream_cx_length_ms, }
    }
}

group! {
    /// `cluster.NAME.*`
    ClusterStats {
        counters {
            upstream_cx_total,
            upstream_cx_http1_total,
            upstream_cx_http2_total,
            upstream_cx_connect_fail,
            upstream_cx_connect_timeout,
            upstream_cx_destroy,
            upstream_cx_overflow,
            upstream_cx_none_healthy,
            upstream_cx_idle_timeout,
            upstream_cx_max_requests,
            upstream_cx_protocol_error,
            upstream_cx_rx_bytes_total,
            upstream_cx_tx_bytes_total,
            upstream_rq_total,
            upstream_rq_pending_total,
            upstream_rq_pending_overflow,
            upstream_rq_cancelled,
            upstream_rq_timeout,
            upstream_rq_per_try_timeout,
            upstream_rq_per_try_idle_timeout,
            upstream_rq_max_duration_reached,
            upstream_rq_rx_reset,
            upstream_rq_tx_reset,
            upstream_rq_retry,
            upstream_rq_retry_success,
            upstream_rq_retry_overflow,
            upstream_rq_retry_limit_exceeded,
            upstream_internal_redirect_succeeded_total,
            upstream_internal_redirect_failed_total,
            retry_or_shadow_abandoned,
            upstream_rq_1xx,
            upstream_rq_2xx,
            upstream_rq_3xx,
            upstream_rq_4xx,
            upstream_rq_5xx,
            upstream_rq_completed,
            membership_change,
            update_attempt,
            update_success,
            update_failure,
            update_empty,
            update_no_rebuild,
            update_rejected,
            init_fetch_timeout,
            original_dst_host_invalid,
            ssl_handshake as "ssl.handshake",
            ssl_connection_error as "ssl.connection_error",
            ssl_fail_verify_san as "ssl.fail_verify_san",
            upstream_context_secrets_not_ready as "client_ssl_socket_factory.upstream_context_secrets_not_ready",
            lb_healthy_panic,
            lb_local_cluster_not_ok,
            lb_recalculate_zone_structures,
            lb_zone_cluster_too_small,
            lb_zone_no_capacity_left,
            lb_zone_routing_all_directly,
            lb_zone_routing_cross_zone,
            lb_zone_routing_sampled,
        }
        gauges {
            upstream_cx_active,
            upstream_rq_active,
            upstream_rq_pending_active,
            membership_degraded,
            membership_excluded,
            membership_healthy,
            membership_total,
            default_cx_open as "circuit_breakers.default.cx_open",
            default_rq_pending_open as "circuit_breakers.default.rq_pending_open",
            default_rq_open as "circuit_breakers.default.rq_open",
            default_rq_retry_open as "circuit_breakers.default.rq_retry_open",
            high_cx_open as "circuit_breakers.high.cx_open",
            high_rq_pending_open as "circuit_breakers.high.rq_pending_open",
            high_rq_open as "circuit_breakers.high.rq_open",
            high_rq_retry_open as "circuit_breakers.high.rq_retry_open",
        }
        histograms { upstream_rq_time, upstream_cx_connect_ms, upstream_cx_length_ms, }
        codes { upstream_rq_codes as "upstream_rq_" }
    }
}

group! {
    /// `cluster.NAME.outlier_detection.*`, of clusters that have it.
    OutlierStats {
        counters {
            // Deprecated in Envoy, and there all the same.
            ejections_total as "outlier_detection.ejections_total",
            ejections_consecutive_5xx as "outlier_detection.ejections_consecutive_5xx",
            ejections_success_rate as "outlier_detection.ejections_success_rate",
            ejections_overflow as "outlier_detection.ejections_overflow",
            ejections_enforced_total as "outlier_detection.ejections_enforced_total",
            ejections_detected_consecutive_5xx as "outlier_detection.ejections_detected_consecutive_5xx",
            ejections_enforced_consecutive_5xx as "outlier_detection.ejections_enforced_consecutive_5xx",
            ejections_detected_consecutive_gateway_failure
                as "outlier_detection.ejections_detected_consecutive_gateway_failure",
            ejections_enforced_consecutive_gateway_failure
                as "outlier_detection.ejections_enforced_consecutive_gateway_failure",
            ejections_detected_consecutive_local_origin_failure
                as "outlier_detection.ejections_detected_consecutive_local_origin_failure",
            ejections_enforced_consecutive_local_origin_failure
                as "outlier_detection.ejections_enforced_consecutive_local_origin_failure",
            ejections_detected_success_rate as "outlier_detection.ejections_detected_success_rate",
            ejections_enforced_success_rate as "outlier_detection.ejections_enforced_success_rate",
            ejections_detected_local_origin_success_rate
                as "outlier_detection.ejections_detected_local_origin_success_rate",
            ejections_enforced_local_origin_success_rate
                as "outlier_detection.ejections_enforced_local_origin_success_rate",
            ejections_detected_failure_percentage as "outlier_detection.ejections_detected_failure_percentage",
            ejections_enforced_failure_percentage as "outlier_detection.ejections_enforced_failure_percentage",
            ejections_detected_local_origin_failure_percentage
                as "outlier_detection.ejections_detected_local_origin_failure_percentage",
            ejections_enforced_local_origin_failure_percentage
                as "outlier_detection.ejections_enforced_local_origin_failure_percentage",
        }
        gauges { ejections_active as "outlier_detection.ejections_active", }
        histograms {}
    }
}

group! {
    /// `cluster.NAME.health_check.*`, of clusters that check.
    HealthCheckStats {
        counters {
            attempt as "health_check.attempt",
            success as "health_check.success",
            failure as "health_check.failure",
            network_failure as "health_check.network_failure",
            passive_failure as "health_check.passive_failure",
            verify_cluster as "health_check.verify_cluster",
        }
        gauges { healthy as "health_check.healthy", degraded as "health_check.degraded", }
        histograms {}
    }
}

group! {
    /// `cluster.NAME.circuit_breakers.*.remaining_*`, of clusters with `track_remaining`.
    RemainingStats {
        counters {}
        gauges {
            default_cx as "circuit_breakers.default.remaining_cx",
            default_pending as "circuit_breakers.default.remaining_pending",
            default_rq as "circuit_breakers.default.remaining_rq",
            default_retries as "circuit_breakers.default.remaining_retries",
            high_cx as "circuit_breakers.high.remaining_cx",
            high_pending as "circuit_breakers.high.remaining_pending",
            high_rq as "circuit_breakers.high.remaining_rq",
            high_retries as "circuit_breakers.high.remaining_retries",
        }
        histograms {}
    }
}

group! {
    /// `cluster.NAME.lb_subsets_*`, of clusters with subsets.
    SubsetStats {
        counters {
            lb_subsets_created,
            lb_subsets_removed,
            lb_subsets_selected,
            lb_subsets_fallback,
            lb_subsets_fallback_panic,
        }
        gauges { lb_subsets_active, }
        histograms {}
    }
}

group! {
    /// `cluster.NAME.ring_hash_lb.*`, of clusters with `RING_HASH`.
    RingHashStats {
        counters {}
        gauges {
            size as "ring_hash_lb.size",
            min_hashes_per_host as "ring_hash_lb.min_hashes_per_host",
            max_hashes_per_host as "ring_hash_lb.max_hashes_per_host",
        }
        histograms {}
    }
}

group! {
    /// `cluster.NAME.maglev_lb.*`, of clusters with `MAGLEV`.
    MaglevStats {
        counters {}
        gauges {
            min_entries_per_host as "maglev_lb.min_entries_per_host",
            max_entries_per_host as "maglev_lb.max_entries_per_host",
        }
        histograms {}
    }
}

group! {
    /// `server.*`
    ServerStats {
        counters {}
        gauges { live, state, concurrency, uptime, memory_physical_size, total_connections, }
        histograms {}
    }
}

group! {
    /// `listener_manager.*`
    ListenerManagerStats {
        counters {
            listener_added,
            listener_modified,
            listener_removed,
            listener_create_success,
            listener_create_failure,
        }
        gauges { total_listeners_active, total_listeners_draining, workers_started, }
        histograms {}
    }
}

group! {
    /// `cluster_manager.*`
    ClusterManagerStats {
        counters { cluster_added, cluster_modified, cluster_removed, }
        gauges { active_clusters, warming_clusters, }
        histograms {}
    }
}

group! {
    /// `cluster_manager.cds.*`, `listener_manager.lds.*`, `http.PREFIX.rds.NAME.*`, `sds.NAME.*`: one
    /// subscription.
    SubscriptionStats {
        counters {
            update_attempt,
            update_success,
            update_rejected,
            update_failure,
            init_fetch_timeout,
        }
        gauges { update_time, }
        histograms {}
    }
}

group! {
    /// `control_plane.*`
    ControlPlaneStats {
        counters {
            // Not Envoy's: responses that break the protocol.
            protocol_errors,
        }
        gauges { connected_state, }
        histograms {}
    }
}

group! {
    /// `filesystem.*`: access log files.
    FilesystemStats {
        counters {
            write_buffered,
            write_completed,
            write_failed,
            reopen_failed,
            // Not Envoy's: lines that found the buffer full.
            write_dropped,
        }
        gauges { write_total_buffered, }
        histograms {}
    }
}

impl HttpStats {
    /// Counts one completed response (`downstream_rq_completed`, `downstream_rq_2xx` and its kin).
    pub fn count_response(&self, status: u16) {
        self.downstream_rq_completed.inc();
        match status / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            5 => self.downstream_rq_5xx.inc(),
            _ => {}
        }
    }
}

impl ClusterStats {
    /// Counts one response (`upstream_rq_completed`, `upstream_rq_2xx` and its kin, `upstream_rq_200` and
    /// its kin).
    pub fn count_response(&self, status: u16) {
        self.upstream_rq_completed.inc();
        match status / 100 {
            1 => self.upstream_rq_1xx.inc(),
            2 => self.upstream_rq_2xx.inc(),
            3 => self.upstream_rq_3xx.inc(),
            4 => self.upstream_rq_4xx.inc(),
            5 => self.upstream_rq_5xx.inc(),
            _ => {}
        }
        self.upstream_rq_codes.inc(status);
    }
}
