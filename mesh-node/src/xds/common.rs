//! Small values that many messages share: durations, addresses, prefixes, data sources, percentages.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use mesh_xds::pb::envoy::config::core::v3::data_source::Specifier;
use mesh_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use mesh_xds::pb::envoy::config::core::v3::{
    Address, CidrRange, DataSource, RuntimeDouble, RuntimeFeatureFlag, RuntimeFractionalPercent,
    SocketAddress,
};
use mesh_xds::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use mesh_xds::pb::google::protobuf;

use super::error::{At, XdsError};
use crate::model::Str;
use crate::model::cluster::EndpointAddress;
use crate::model::listener::Cidr;
use crate::runtime::{Fraction, Setting};

/// A duration that may be zero.
pub(super) fn duration(at: At<'_>, value: protobuf::Duration) -> Result<Duration, XdsError> {
    let parts = (u64::try_from(value.seconds), u32::try_from(value.nanos));
    match parts {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(at.invalid("must be a duration that is not negative")),
    }
}

/// A duration or its default.
pub(super) fn duration_or(
    at: At<'_>,
    value: Option<protobuf::Duration>,
    default: Duration,
) -> Result<Duration, XdsError> {
    value.map_or(Ok(default), |v| duration(at, v))
}

/// A timeout: unset is the default, zero is "no limit".
pub(super) fn timeout(
    at: At<'_>,
    value: Option<protobuf::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, XdsError> {
    match value {
        None => Ok(default),
        Some(value) => Ok(Some(duration(at, value)?).filter(|d| !d.is_zero())),
    }
}

/// A wrapped number or its default.
pub(super) fn number(value: Option<protobuf::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |v| v.value)
}

/// A wrapped boolean or its default.
pub(super) fn boolean(value: Option<protobuf::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// A shared string; `None` if empty.
pub(super) fn non_empty(value: &str) -> Option<Str> {
    (!value.is_empty()).then(|| value.into())
}

/// An enum value, which a newer server may have invented.
pub(super) fn enumeration<T: TryFrom<i32>>(at: At<'_>, value: i32) -> Result<T, XdsError> {
    T::try_from(value).map_err(|_| at.invalid(format!("the value {value} is not known")))
}

/// `ip:port` of an address that must not be a host name.
pub(super) fn socket_address(at: At<'_>, address: Option<&Address>) -> Result<SocketAddr, XdsError> {
    match endpoint_address(at, address)? {
        EndpointAddress::Socket(address) => Ok(address),
        EndpointAddress::Host(host, _) => {
            let at = at.field("socket_address");
            let at = at.field("address");
            Err(at.invalid(format!("must be an IP address, not {host:?}")))
        }
    }
}

/// An address: IP or host name, and port.
pub(super) fn endpoint_address(at: At<'_>, address: Option<&Address>) -> Result<EndpointAddress, XdsError> {
    match address.and_then(|a| a.address.as_ref()) {
        Some(AddressKind::SocketAddress(address)) => socket(at.field("socket_address"), address),
        Some(_) => Err(at.invalid("must be a socket_address")),
        None => Err(at.invalid("is required")),
    }
}

/// A `SocketAddress` with a numeric port.
pub(super) fn socket(at: At<'_>, address: &SocketAddress) -> Result<EndpointAddress, XdsError> {
    if address.protocol != 0 {
        return Err(at.field("protocol").invalid("must be TCP"));
    }
    let port = match address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port)
            .map_err(|_| at.field("port_value").invalid(format!("must be at most 65535, not {port}")))?,
        _ => return Err(at.field("port_value").invalid("is required")),
    };
    Ok(match address.address.parse::<IpAddr>() {
        Ok(ip) => EndpointAddress::Socket(SocketAddr::new(ip, port)),
        // Digits and dots alone are a mistyped IPv4 address, never a host name.
        Err(_) if address.address.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            let message = format!("{:?} is not an IP address or host name", address.address);
            return Err(at.field("address").invalid(message));
        }
        Err(_) => EndpointAddress::Host(address.address.as_str().into(), port),
    })
}

/// An address prefix, host bits cleared.
pub(super) fn cidr(at: At<'_>, range: &CidrRange) -> Result<Cidr, XdsError> {
    let address: IpAddr = range.address_prefix.parse().map_err(|_| {
        at.field("address_prefix").invalid(format!("{:?} is not an IP address", range.address_prefix))
    })?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let len = number(range.prefix_len, 0);
    let prefix_len = u8::try_from(len).ok().filter(|&len| len <= max);
    let prefix_len = prefix_len
        .ok_or_else(|| at.field("prefix_len").invalid(format!("must be at most {max}, not {len}")))?;
    Ok(Cidr { address: masked(address, prefix_len), prefix_len })
}

fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

/// All prefixes of a list.
pub(super) fn cidrs(at: At<'_>, ranges: &[CidrRange]) -> Result<Vec<Cidr>, XdsError> {
    ranges.iter().enumerate().map(|(i, range)| cidr(at.index(i), range)).collect()
}

/// The bytes of a data source.
pub(super) fn data(at: At<'_>, source: &DataSource) -> Result<Vec<u8>, XdsError> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::Filename(file)) => std::fs::read(file).map_err(|source| XdsError::File {
            path: at.field("filename").to_string(),
            file: file.clone(),
            source,
        }),
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(name).map(String::into_bytes).map_err(|_| {
                at.field("environment_variable").invalid(format!("{name} is not set; set it or use filename"))
            })
        }
        None => Err(at.invalid("needs one of filename, inline_bytes, inline_string, environment_variable")),
    }
}

/// The text of a data source.
pub(super) fn text(at: At<'_>, source: &DataSource) -> Result<String, XdsError> {
    String::from_utf8(data(at, source)?).map_err(|_| at.invalid("must be UTF-8 text"))
}

/// Numerator and denominator.
pub(super) fn fraction(percent: &FractionalPercent) -> (u32, u32) {
    let denominator = match percent.denominator {
        1 => 10_000,
        2 => 1_000_000,
        _ => 100,
    };
    (percent.numerator, denominator)
}

/// A fraction that a runtime key can change.
pub(super) fn runtime_fraction(value: &RuntimeFractionalPercent) -> Setting<Fraction> {
    Setting::new(value.default_value.as_ref().map_or((100, 100), fraction), &value.runtime_key)
}

/// A flag that a runtime key can change.
pub(super) fn runtime_flag(value: Option<&RuntimeFeatureFlag>, default: bool) -> Setting<bool> {
    match value {
        Some(value) => Setting::new(boolean(value.default_value, default), &value.runtime_key),
        None => Setting::fixed(default),
    }
}

/// A number that a runtime key can change.
pub(super) fn runtime_double(value: Option<&RuntimeDouble>, default: f64) -> Setting<f64> {
    match value {
        Some(value) => Setting::new(value.default_value, &value.runtime_key),
        None => Setting::fixed(default),
    }
}

/// A percentage or its default.
pub(super) fn percent(at: At<'_>, value: Option<Percent>, default: f64) -> Result<f64, XdsError> {
    match value {
        None => Ok(default),
        Some(Percent { value }) if (0.0..=100.0).contains(&value) => Ok(value),
        Some(Percent { value }) => Err(at.invalid(format!("must be from 0 to 100, not {value}"))),
    }
}

/// A hash of a message that is equal for equal content.
pub(super) fn content_hash(message: &impl mesh_xds::prost::Message, files: &[u64]) -> u64 {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    hasher.hash_one((message.encode_to_vec(), files))
}
