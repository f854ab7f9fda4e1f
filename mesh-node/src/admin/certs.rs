//! `/certs`: the certificates that the configuration names, as they are in their files now.

use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, Pem, X509Certificate};

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

pub fn page(state: &dyn AdminState, _: &Query) -> Reply {
    let mut certificates = Vec::new();
    collect(&state.bootstrap().0, &mut certificates);
    Reply::json(&json!({ "certificates": certificates }))
}

/// Finds TLS contexts and static secrets: objects with a certificate chain or a trusted CA in them.
fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) => {
            let chain = object.get("certificate_chain").map(described).unwrap_or_default();
            let roots = object.get("trusted_ca").map(described).unwrap_or_default();
            if !chain.is_empty() || !roots.is_empty() {
                found.push(json!({ "ca_cert": roots, "cert_chain": chain }));
            }
            object.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// The certificates of an `envoy.config.core.v3.DataSource`.
fn described(source: &Value) -> Vec<Value> {
    let (path, pem) = match (source.get("filename"), source.get("inline_string")) {
        (Some(Value::String(path)), _) => (path.as_str(), std::fs::read(path).unwrap_or_default()),
        (_, Some(Value::String(text))) => ("<inline>", text.clone().into_bytes()),
        _ => return Vec::new(),
    };
    let pems = Pem::iter_from_buffer(&pem).flatten();
    pems.filter_map(|pem| Some(describe(path, &X509Certificate::from_der(&pem.contents).ok()?.1))).collect()
}

fn describe(path: &str, certificate: &X509Certificate<'_>) -> Value {
    let validity = certificate.validity();
    let time = |seconds: i64| {
        let since = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let text = crate::telemetry::iso8601(std::time::UNIX_EPOCH + since);
        text.replace(".000Z", "Z")
    };
    let days = validity.time_to_expiration().map_or(0, |left| left.whole_days());
    json!({
        "path": path,
        "serial_number": crate::telemetry::certificate::serial_digits(certificate),
        "subject_alt_names": alternative_names(certificate),
        "days_until_expiration": days.to_string(),
        "valid_from": time(validity.not_before.timestamp()),
        "expiration_time": time(validity.not_after.timestamp()),
    })
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<Value> {
    let extensions = certificate.extensions().iter().map(|extension| extension.parsed_extension());
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(json!({ "dns": name })),
            GeneralName::URI(uri) => Some(json!({ "uri": uri })),
            GeneralName::IPAddress(bytes) => {
                let ip = match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(std::net::IpAddr::from),
                    _ => <[u8; 16]>::try_from(*bytes).ok().map(std::net::IpAddr::from),
                };
                ip.map(|ip| json!({ "ip_address": ip.to_string() }))
            }
            _ => None,
        })
        .collect()
}
