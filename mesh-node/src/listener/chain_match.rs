//! Chooses the filter chain of a connection as Envoy does (`FilterChainMatch`): criterion after criterion,
//! each keeps the chains with the most specific value that fits, and never goes back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::model::listener::{Cidr, FilterChain, Listener, SourceType};

/// What is known of a connection when its filter chain is chosen.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub destination: SocketAddr,
    /// The peer on the wire.
    pub direct_source: SocketAddr,
    /// The peer, or whom it speaks for (PROXY protocol).
    pub source: SocketAddr,
    /// From the TLS inspector, lower case.
    pub server_name: Option<&'a str>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: &'a str,
    /// ALPN offered, or what the HTTP inspector found.
    pub application_protocols: &'a [String],
}

type Candidates<'a> = SmallVec<[&'a Arc<FilterChain>; 8]>;

/// The chain that the connection enters, the default chain, or none.
pub fn choose<'a>(listener: &'a Listener, facts: &Facts<'_>) -> Option<&'a Arc<FilterChain>> {
    let mut chains: Candidates<'a> = listener.filter_chains.iter().collect();
    let port = facts.destination.port();
    narrow(&mut chains, |c| match c.matches.destination_port {
        Some(p) => (p == port).then_some(1),
        None => Some(0),
    });
    narrow(&mut chains, |c| prefix_rank(&c.matches.prefix_ranges, facts.destination.ip()));
    narrow(&mut chains, |c| server_name_rank(&c.matches.server_names, facts.server_name));
    narrow(&mut chains, |c| match c.matches.transport_protocol.as_str() {
        "" => Some(0),
        wanted => (wanted == facts.transport_protocol).then_some(1),
    });
    narrow(&mut chains, |c| alpn_rank(&c.matches.application_protocols, facts.application_protocols));
    narrow(&mut chains, |c| prefix_rank(&c.matches.direct_source_prefix_ranges, facts.direct_source.ip()));
    let local = is_local(facts);
    narrow(&mut chains, |c| match c.matches.source_type {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    });
    narrow(&mut chains, |c| prefix_rank(&c.matches.source_prefix_ranges, facts.source.ip()));
    let source_port = facts.source.port();
    narrow(&mut chains, |c| match c.matches.source_ports.as_slice() {
        [] => Some(0),
        ports => ports.contains(&source_port).then_some(1),
    });
    chains.first().copied().or(listener.default_filter_chain.as_ref())
}

/// Keeps the chains of the highest rank; `None` does not match at all.
fn narrow<'a>(chains: &mut Candidates<'a>, rank: impl Fn(&FilterChain) -> Option<u32>) {
    let Some(best) = chains.iter().filter_map(|c| rank(c)).max() else {
        chains.clear();
        return;
    };
    chains.retain(|c| rank(c) == Some(best));
}

/// Longer prefixes rank higher; no prefixes match anything.
fn prefix_rank(ranges: &[Cidr], ip: IpAddr) -> Option<u32> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|r| r.contains(ip)).map(|r| u32::from(r.prefix_len) + 1).max()
}

/// Exact names rank above wildcards, longer wildcards above shorter ones.
fn server_name_rank(names: &[String], asked: Option<&str>) -> Option<u32> {
    if names.is_empty() {
        return Some(0);
    }
    let asked = asked.filter(|name| !name.is_empty())?;
    names
        .iter()
        .filter_map(|name| match name.strip_prefix('*') {
            Some(suffix) if asked.len() > suffix.len() && asked.ends_with(suffix) => {
                Some(1 + suffix.len() as u32)
            }
            None if name == asked => Some(u32::MAX),
            _ => None,
        })
        .max()
}

/// The earlier a protocol stands in the client's list, the higher.
fn alpn_rank(wanted: &[String], offered: &[String]) -> Option<u32> {
    if wanted.is_empty() {
        return Some(0);
    }
    let first = offered.iter().position(|o| wanted.contains(o))?;
    Some((offered.len() - first) as u32)
}

fn is_local(facts: &Facts<'_>) -> bool {
    let (source, destination) = (facts.source.ip().to_canonical(), facts.destination.ip().to_canonical());
    source.is_loopback() || source == destination
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::listener::{Direction, FilterChainMatch, ListenerFilters};

    fn chain(name: &str, matches: FilterChainMatch) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            name: name.into(),
            matches,
            tls: None,
            filters: Vec::new(),
            transport_socket_connect_timeout: None,
        })
    }

    fn listener(chains: Vec<Arc<FilterChain>>, default: Option<Arc<FilterChain>>) -> Listener {
        Listener {
            name: "l".into(),
            address: "0.0.0.0:15006".parse().unwrap(),
            additional_addresses: Vec::new(),
            direction: Direction::Inbound,
            bind_to_port: true,
            use_original_dst: false,
            listener_filters: ListenerFilters::default(),
            listener_filters_timeout: None,
            continue_on_listener_filters_timeout: false,
            filter_chains: chains,
            default_filter_chain: default,
            access_log: Vec::new(),
            per_connection_buffer_limit_bytes: 1 << 20,
            stats: Arc::default(),
            drain: Arc::default(),
            content_hash: 0,
        }
    }

    fn cidr(text: &str, len: u8) -> Cidr {
        Cidr { address: text.parse().unwrap(), prefix_len: len }
    }

    struct Conn<'a> {
        destination: &'a str,
        source: &'a str,
        sni: Option<&'a str>,
        transport: &'a str,
        alpn: Vec<String>,
    }

    impl Default for Conn<'_> {
        fn default() -> Self {
            Self {
                destination: "10.1.0.5:9080",
                source: "10.1.0.9:40000",
                sni: None,
                transport: "raw_buffer",
                alpn: Vec::new(),
            }
        }
    }

    fn chosen(listener: &Listener, conn: Conn<'_>) -> Option<String> {
        let source = conn.source.parse().unwrap();
        let facts = Facts {
            destination: conn.destination.parse().unwrap(),
            direct_source: source,
            source,
            server_name: conn.sni,
            transport_protocol: conn.transport,
            application_protocols: &conn.alpn,
        };
        choose(listener, &facts).map(|c| c.name.to_string())
    }

    fn alpn(of: &[&str]) -> Vec<String> {
        of.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn a_permissive_port_tells_mutual_tls_from_plaintext() {
        let tls = FilterChainMatch {
            destination_port: Some(9080),
            transport_protocol: "tls".into(),
            application_protocols: alpn(&["istio", "istio-http/1.1"]),
            ..Default::default()
        };
        let plain = FilterChainMatch {
            destination_port: Some(9080),
            transport_protocol: "raw_buffer".into(),
            ..Default::default()
        };
        let l = listener(
            vec![chain("mtls", tls), chain("plain", plain)],
            Some(chain("rest", Default::default())),
        );
        let offered = Conn { transport: "tls", alpn: alpn(&["istio"]), ..Default::default() };
        assert_eq!(chosen(&l, offered).as_deref(), Some("mtls"));
        assert_eq!(chosen(&l, Conn::default()).as_deref(), Some("plain"));
        let other_port = Conn { destination: "10.1.0.5:81", ..Default::default() };
        assert_eq!(chosen(&l, other_port).as_deref(), Some("rest"));
        // TLS without an Istio ALPN fits neither: Envoy does not go back to another port's chains.
        let foreign = Conn { transport: "tls", alpn: alpn(&["h2"]), ..Default::default() };
        assert_eq!(chosen(&l, foreign).as_deref(), Some("rest"));
    }

    #[test]
    fn the_longest_address_prefix_wins() {
        let with = |ranges: Vec<Cidr>| FilterChainMatch { prefix_ranges: ranges, ..Default::default() };
        let l = listener(
            vec![
                chain("any", Default::default()),
                chain("wide", with(vec![cidr("10.0.0.0", 8)])),
                chain("narrow", with(vec![cidr("10.1.0.5", 32)])),
            ],
            None,
        );
        assert_eq!(chosen(&l, Conn::default()).as_deref(), Some("narrow"));
        let wide = Conn { destination: "10.9.9.9:1", ..Default::default() };
        assert_eq!(chosen(&l, wide).as_deref(), Some("wide"));
        let any = Conn { destination: "[fd00::1]:1", ..Default::default() };
        assert_eq!(chosen(&l, any).as_deref(), Some("any"));
        let mapped = Conn { destination: "[::ffff:10.1.0.5]:1", ..Default::default() };
        assert_eq!(chosen(&l, mapped).as_deref(), Some("narrow"));
    }

    #[test]
    fn exact_server_names_win_over_wildcards_and_no_name_fits_neither() {
        let names = |of: &[&str]| FilterChainMatch { server_names: alpn(of), ..Default::default() };
        let l = listener(
            vec![
                chain("exact", names(&["a.example.com"])),
                chain("long", names(&["*.b.example.com"])),
                chain("short", names(&["*.example.com"])),
            ],
            None,
        );
        let ask = |sni| chosen(&l, Conn { sni, transport: "tls", ..Default::default() });
        assert_eq!(ask(Some("a.example.com")).as_deref(), Some("exact"));
        assert_eq!(ask(Some("x.b.example.com")).as_deref(), Some("long"));
        assert_eq!(ask(Some("x.example.com")).as_deref(), Some("short"));
        assert_eq!(ask(Some("example.com")), None);
        assert_eq!(ask(None), None);
    }

    #[test]
    fn the_clients_protocol_order_decides_between_chains() {
        let with = |of: &[&str]| FilterChainMatch { application_protocols: alpn(of), ..Default::default() };
        let l = listener(vec![chain("h1", with(&["http/1.1"])), chain("h2", with(&["h2"]))], None);
        let ask = |of: &[&str]| chosen(&l, Conn { alpn: alpn(of), ..Default::default() });
        assert_eq!(ask(&["h2", "http/1.1"]).as_deref(), Some("h2"));
        assert_eq!(ask(&["http/1.1", "h2"]).as_deref(), Some("h1"));
        assert_eq!(ask(&["spdy"]), None);
    }

    #[test]
    fn local_and_external_sources_are_told_apart() {
        let of = |source_type| FilterChainMatch { source_type, ..Default::default() };
        let l = listener(
            vec![
                chain("local", of(SourceType::SameIpOrLoopback)),
                chain("external", of(SourceType::External)),
            ],
            None,
        );
        let ask = |source| chosen(&l, Conn { source, ..Default::default() });
        assert_eq!(ask("127.0.0.1:1").as_deref(), Some("local"));
        assert_eq!(ask("10.1.0.5:1").as_deref(), Some("local"));
        assert_eq!(ask("10.1.0.6:1").as_deref(), Some("external"));
    }
}
