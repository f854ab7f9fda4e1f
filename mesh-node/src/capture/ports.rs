//! Which local ports the proxy's own connections inside a pod may have.
//!
//! A connection to the application carries the client's address, so inside the pod its port alone tells it
//! from the client's own connections. A client that comes to use the port of one that is open is not heard:
//! its SYN meets the application's socket where it should meet the listener, and is not answered. So the two
//! kinds of ports are kept apart: the proxy's connections to applications come from below
//! [`FIRST_CLIENT_PORT`], its connections to the network from there on, in every pod of every node; and where
//! the pod itself takes ports from below, which tells how the cluster is tuned and thereby how clients without
//! the mesh are, those to its application come from beside its range. What is left is a client of another
//! tuning than the pod's, or one that has no room beside its range.

use std::io;
use std::ops::RangeInclusive;

use super::sysctl;

/// The first port of the range that Linux gives to clients unless told otherwise
/// (`net.ipv4.ip_local_port_range`).
const FIRST_CLIENT_PORT: u16 = 32_768;
/// The first port that needs no privilege: servers that trust lower ones must not see them.
const FIRST_PORT: u16 = 1024;
/// Fewer ports would come around too soon: a port rests for a second at least.
const ENOUGH: usize = 4096;

/// Where the kernel takes the ports of clients from that choose none, in the namespace of the calling thread.
///
/// # Errors
/// With the name of the setting, if it cannot be read.
pub(super) fn ephemeral() -> Result<RangeInclusive<u16>, (String, io::Error)> {
    const NAME: &str = "ipv4/ip_local_port_range";
    let text = sysctl::read(NAME)?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high))) => Ok(low..=high),
        _ => Err((NAME.to_owned(), io::ErrorKind::InvalidData.into())),
    }
}

/// The ports of connections to the application of a pod with this range of its own.
pub(super) fn to_application(ephemeral: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let whole = FIRST_PORT..=FIRST_CLIENT_PORT - 1;
    let below = FIRST_PORT..=ephemeral.start().saturating_sub(1).min(*whole.end());
    let above = ephemeral.end().saturating_add(1).max(FIRST_PORT)..=*whole.end();
    let widest = if below.len() >= above.len() { below } else { above };
    if widest.len() >= ENOUGH { widest } else { whole }
}

/// The ports that connections to the network have to be kept to; none if the pod's own range is good, or has
/// no other ports.
pub(super) fn to_network(ephemeral: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let above = FIRST_CLIENT_PORT..=*ephemeral.end();
    (*ephemeral.start() < FIRST_CLIENT_PORT && above.len() >= ENOUGH).then_some(above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untuned_pod_keeps_its_own_range_for_the_network_and_gives_all_below_to_the_application() {
        assert_eq!(to_network(&(32_768..=60_999)), None);
        assert_eq!(to_application(&(32_768..=60_999)), 1024..=32_767);
    }

    #[test]
    fn the_two_kinds_of_ports_never_meet_and_those_to_the_application_lie_beside_the_pods_range() {
        for ephemeral in [16_000..=65_535, 1024..=65_535, 10_000..=40_000, 1024..=20_000, 2000..=60_999] {
            let application = to_application(&ephemeral);
            assert!(application.len() >= ENOUGH, "{ephemeral:?}: {application:?}");
            assert!(*application.start() >= 1024 && *application.end() < 32_768, "{application:?}");
            if let Some(network) = to_network(&ephemeral) {
                assert!(network.start() > application.end(), "{ephemeral:?}");
                assert_eq!(network.end(), ephemeral.end(), "{ephemeral:?}");
            }
        }
        assert_eq!(to_application(&(16_000..=65_535)), 1024..=15_999);
        assert_eq!(to_application(&(1024..=20_000)), 20_001..=32_767);
        assert_eq!(to_application(&(1024..=65_535)), 1024..=32_767);
        // All of the pod's ports are below: there is nothing to keep them to.
        assert_eq!(to_network(&(1024..=20_000)), None);
    }

    #[test]
    fn the_range_of_this_namespace_is_read() {
        let range = ephemeral().unwrap();
        assert!(range.start() < range.end());
    }
}
