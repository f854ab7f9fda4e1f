//! Who the two ends of a connection are, as Istio's metadata exchange tells it: over headers, over the first
//! bytes of a TCP connection, in the metadata of endpoints, as `baggage`.
//!
//! The exchange's messages are read and written here byte by byte (a `google.protobuf.Struct`): what a peer
//! sends is not configuration and must cost little.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use super::base64;
use super::istio_metrics::Held;
use crate::model::pod::Owner;

/// First bytes of the TCP exchange.
pub const MAGIC: u32 = 0x3D23_0467;
const STRUCT_URL: &str = "type.googleapis.com/google.protobuf.Struct";
const HEADER: &str = "x-envoy-peer-metadata";
const HEADER_ID: &str = "x-envoy-peer-metadata-id";
/// More than any peer has to say.
pub const MAX_BYTES: usize = 64 << 10;

/// A workload, as telemetry names it. Empty text is "not told".
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Of the pod.
    pub name: String,
    pub namespace: String,
    pub workload: String,
    pub cluster: String,
    /// `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`
    pub owner: String,
    pub canonical_name: String,
    pub canonical_revision: String,
    pub app: String,
    pub version: String,
    pub identity: String,
    /// Others, where they were asked for.
    pub labels: Vec<(String, String)>,
}

impl Peer {
    /// From the metadata of an endpoint: `workload;namespace;canonical name;canonical revision;cluster`.
    pub fn of_endpoint(encoded: &str) -> Option<Self> {
        let mut parts = encoded.split(';').map(str::to_owned);
        Some(Self {
            workload: parts.next()?,
            namespace: parts.next()?,
            canonical_name: parts.next()?,
            canonical_revision: parts.next()?,
            cluster: parts.next()?,
            ..Self::default()
        })
    }

    /// From a header's value; `labels` names the labels to keep.
    pub fn of_header(value: &[u8], labels: &[String]) -> Option<Self> {
        Self::of_struct(&base64::decode(value)?, labels)
    }

    /// From an encoded `Struct`.
    pub fn of_struct(bytes: &[u8], labels: &[String]) -> Option<Self> {
        Some(Self::of_fields(&fields(bytes)?, labels))
    }

    fn of_fields(fields: &[Entry<'_>], labels: &[String]) -> Self {
        let mut peer = Self::default();
        for Entry { key, value } in fields {
            let text = value.text();
            let field = match *key {
                "NAME" => &mut peer.name,
                "NAMESPACE" => &mut peer.namespace,
                "OWNER" => &mut peer.owner,
                "WORKLOAD_NAME" => &mut peer.workload,
                "CLUSTER_ID" => &mut peer.cluster,
                "IDENTITY" => &mut peer.identity,
                "LABELS" => {
                    if let Value::Struct(inner) = value {
                        peer.take_labels(inner.iter().map(|e| (e.key, e.value.text())), labels);
                    }
                    continue;
                }
                _ => continue,
            };
            *field = text.to_owned();
        }
        peer
    }

    fn take_labels<'a>(&mut self, of: impl Iterator<Item = (&'a str, &'a str)>, wanted: &[String]) {
        for (key, text) in of {
            match key {
                "service.istio.io/canonical-name" => self.canonical_name = text.to_owned(),
                "service.istio.io/canonical-revision" => self.canonical_revision = text.to_owned(),
                "app.kubernetes.io/name" => self.app = text.to_owned(),
                "app" if self.app.is_empty() => self.app = text.to_owned(),
                "app.kubernetes.io/version" => self.version = text.to_owned(),
                "version" if self.version.is_empty() => self.version = text.to_owned(),
                _ if wanted.iter().any(|w| w == key) => self.labels.push((key.to_owned(), text.to_owned())),
                _ => {}
            }
        }
    }

    /// From a `baggage` header; `None` when it names nothing that telemetry knows.
    pub fn of_baggage(value: &str) -> Option<Self> {
        let mut peer = Self::default();
        for member in value.split(',') {
            let Some((key, text)) = member.trim().split_once('=') else { continue };
            let field = match key {
                "k8s.namespace.name" => &mut peer.namespace,
                "k8s.cluster.name" => &mut peer.cluster,
                "service.name" => &mut peer.canonical_name,
                "service.version" => &mut peer.canonical_revision,
                "app.name" => &mut peer.app,
                "app.version" => &mut peer.version,
                "k8s.deployment.name" | "k8s.pod.name" | "k8s.cronjob.name" | "k8s.job.name" => {
                    &mut peer.workload
                }
                "k8s.instance.name" => &mut peer.name,
                _ => continue,
            };
            *field = text.to_owned();
        }
        // Each stands for the other where only one is told.
        for (one, other) in
            [(&mut peer.app, &mut peer.canonical_name), (&mut peer.version, &mut peer.canonical_revision)]
        {
            if one.is_empty() {
                one.clone_from(other);
            } else if other.is_empty() {
                other.clone_from(one);
            }
        }
        (peer != Self::default()).then_some(peer)
    }

    /// As a `baggage` header.
    pub fn to_baggage(&self) -> String {
        let kind = self.owner.rsplit('/').nth(1).and_then(|kinds| kinds.strip_suffix('s')).unwrap_or("pod");
        let service = if self.canonical_name.is_empty() { &self.app } else { &self.canonical_name };
        let revision =
            if self.canonical_revision.is_empty() { &self.version } else { &self.canonical_revision };
        let different =
            |text: &'_ String, from: &String| if text == from { String::new() } else { text.clone() };
        let workload_key = format!("k8s.{kind}.name");
        let members = [
            (workload_key.as_str(), self.workload.clone()),
            ("service.name", service.clone()),
            ("app.name", different(&self.app, service)),
            ("service.version", revision.clone()),
            ("app.version", different(&self.version, revision)),
            ("k8s.namespace.name", self.namespace.clone()),
            ("k8s.cluster.name", self.cluster.clone()),
            ("k8s.instance.name", self.name.clone()),
        ];
        let told = members.iter().filter(|(_, text)| !text.is_empty());
        told.map(|(key, text)| format!("{key}={text}")).collect::<Vec<_>>().join(",")
    }

    /// As an encoded `Struct`, keys sorted.
    fn to_struct(&self) -> Vec<u8> {
        let mut labels: BTreeMap<&str, &str> =
            self.labels.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
        labels.extend([
            ("service.istio.io/canonical-name", self.canonical_name.as_str()),
            ("service.istio.io/canonical-revision", self.canonical_revision.as_str()),
            ("app", self.app.as_str()),
            ("version", self.version.as_str()),
        ]);
        let told = |text: &str| (!text.is_empty()).then(|| text_value(text));
        let mut inner = Vec::new();
        for (key, text) in labels {
            put_entry(&mut inner, key, told(text));
        }
        let mut out = Vec::new();
        put_entry(&mut out, "CLUSTER_ID", told(&self.cluster));
        put_entry(&mut out, "IDENTITY", told(&self.identity));
        put_entry(&mut out, "LABELS", Some(struct_value(&inner)));
        put_entry(&mut out, "NAME", told(&self.name));
        put_entry(&mut out, "NAMESPACE", told(&self.namespace));
        put_entry(&mut out, "OWNER", told(&self.owner));
        put_entry(&mut out, "WORKLOAD_NAME", told(&self.workload));
        out
    }
}

/// The workload at this end: what it tells others, ready to be sent, and the metrics that it holds.
#[derive(Debug)]
pub struct LocalPeer {
    pub peer: Peer,
    /// Node id, as in xDS.
    pub id: HeaderValue,
    /// `node.cluster`
    pub service_cluster: HeaderValue,
    /// `node.locality.zone`
    pub zone: String,
    /// `x-envoy-peer-metadata`
    pub value: HeaderValue,
    pub baggage: HeaderValue,
    /// What begins a TCP connection.
    pub preface: Bytes,
    /// Metrics of this workload; they go with it.
    pub metrics: Held,
}

impl Default for LocalPeer {
    fn default() -> Self {
        Self::new("", Peer::default())
    }
}

impl LocalPeer {
    pub fn new(id: &str, peer: Peer) -> Self {
        let header = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        let encoded = peer.to_struct();
        let mut message = Vec::new();
        put_entry(&mut message, HEADER, Some(struct_value(&encoded)));
        put_entry(&mut message, HEADER_ID, (!id.is_empty()).then(|| text_value(id)));
        let mut any = Vec::new();
        put_bytes(&mut any, 1, STRUCT_URL.as_bytes());
        put_bytes(&mut any, 2, &message);
        let mut preface = MAGIC.to_be_bytes().to_vec();
        preface.extend_from_slice(&(any.len() as u32).to_be_bytes());
        preface.extend_from_slice(&any);
        Self {
            id: header(id),
            service_cluster: HeaderValue::from_static(""),
            zone: String::new(),
            value: header(&base64::encode(&encoded)),
            baggage: header(&peer.to_baggage()),
            preface: preface.into(),
            metrics: Held::default(),
            peer,
        }
    }

    /// The same as part of this cluster (`node.cluster`).
    pub fn in_cluster(mut self, cluster: &str) -> Self {
        self.service_cluster = HeaderValue::from_str(cluster).unwrap_or(HeaderValue::from_static(""));
        self
    }

    /// The same in this zone.
    pub fn in_zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }

    /// The node of a bootstrap: `metadata` as Istio's agent writes it.
    pub fn of_node(id: &str, metadata: &serde_json::Value) -> Self {
        let text = |key: &str| metadata.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let mut peer = Peer {
            name: text("NAME"),
            namespace: text("NAMESPACE"),
            workload: text("WORKLOAD_NAME"),
            cluster: text("CLUSTER_ID"),
            owner: text("OWNER"),
            identity: text("IDENTITY"),
            ..Peer::default()
        };
        let labels = metadata.get("LABELS").and_then(|labels| labels.as_object());
        let labels = labels.into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()));
        peer.take_labels(labels, &[]);
        Self::new(id, peer)
    }

    /// What a pod tells of itself.
    pub fn of_pod(
        pod: &str,
        namespace: &str,
        ip: &str,
        labels: &BTreeMap<String, String>,
        owner: Owner,
    ) -> Self {
        let label = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).cloned();
        let Owner { name: workload, url: owner } = owner;
        let app = label(&["app.kubernetes.io/name", "app"]);
        let version = label(&["app.kubernetes.io/version", "version"]);
        let peer = Peer {
            name: pod.to_owned(),
            namespace: namespace.to_owned(),
            owner,
            cluster: "Kubernetes".to_owned(),
            canonical_name: label(&["service.istio.io/canonical-name"])
                .or_else(|| app.clone())
                .unwrap_or_else(|| workload.clone()),
            canonical_revision: label(&["service.istio.io/canonical-revision"])
                .or_else(|| version.clone())
                .unwrap_or_else(|| "latest".to_owned()),
            app: app.unwrap_or_default(),
            version: version.unwrap_or_default(),
            workload,
            ..Peer::default()
        };
        let of_app = labels.get("app").unwrap_or(&peer.workload);
        let cluster = format!("{of_app}.{namespace}");
        let id = format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local");
        let zone = labels.get("topology.kubernetes.io/zone").map_or("", String::as_str);
        Self::new(&id, peer).in_cluster(&cluster).in_zone(zone)
    }
}

/// The peer of a TCP exchange, from the message that follows magic and length.
pub fn of_exchange(any: &[u8]) -> Option<Arc<Peer>> {
    let (mut message, mut reader) = (&[][..], Reader(any));
    while let Some((number, field)) = reader.next()? {
        if number == 2 {
            message = field;
        }
    }
    let fields = fields(message)?;
    let Value::Struct(told) = &fields.iter().find(|entry| entry.key == HEADER)?.value else { return None };
    Some(Arc::new(Peer::of_fields(told, &[])))
}

struct Entry<'a> {
    key: &'a str,
    value: Value<'a>,
}

enum Value<'a> {
    Text(&'a str),
    Struct(Vec<Entry<'a>>),
    Other,
}

impl<'a> Value<'a> {
    fn text(&self) -> &'a str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }
}

/// The entries of an encoded `Struct`; two levels are all that telemetry has.
fn fields(bytes: &[u8]) -> Option<Vec<Entry<'_>>> {
    fields_to(bytes, 2)
}

fn fields_to(bytes: &[u8], depth: u8) -> Option<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((_, entry)) = reader.next()? {
        let (mut key, mut value) = ("", Value::Other);
        let mut parts = Reader(entry);
        while let Some((number, part)) = parts.next()? {
            match number {
                1 => key = std::str::from_utf8(part).ok()?,
                2 => value = value_of(part, depth)?,
                _ => {}
            }
        }
        entries.push(Entry { key, value });
    }
    Some(entries)
}

fn value_of(bytes: &[u8], depth: u8) -> Option<Value<'_>> {
    let mut value = Value::Other;
    let mut reader = Reader(bytes);
    while let Some((number, part)) = reader.next()? {
        match number {
            3 => value = Value::Text(std::str::from_utf8(part).ok()?),
            5 if depth > 0 => value = Value::Struct(fields_to(part, depth - 1)?),
            _ => {}
        }
    }
    Some(value)
}

/// Reads fields; those that have no bytes of their own are skipped.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// `None`: malformed; `Some(None)`: the end.
    fn next(&mut self) -> Option<Option<(u64, &'a [u8])>> {
        while !self.0.is_empty() {
            let key = self.varint()?;
            let skip = match key & 7 {
                0 => {
                    self.varint()?;
                    continue;
                }
                1 => 8,
                2 => {
                    let len = usize::try_from(self.varint()?).ok()?;
                    let (field, rest) = self.0.split_at_checked(len)?;
                    self.0 = rest;
                    return Some(Some((key >> 3, field)));
                }
                5 => 4,
                _ => return None,
            };
            self.0 = self.0.get(skip..)?;
        }
        Some(None)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    put_varint(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn text_value(text: &str) -> Vec<u8> {
    let mut value = Vec::new();
    put_bytes(&mut value, 3, text.as_bytes());
    value
}

fn struct_value(fields: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    put_bytes(&mut value, 5, fields);
    value
}

fn put_entry(out: &mut Vec<u8>, key: &str, value: Option<Vec<u8>>) {
    let Some(value) = value else { return };
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, &value);
    put_bytes(out, 1, &entry);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pod::PodDetails;

    fn productpage() -> LocalPeer {
        let labels = [("app", "productpage"), ("version", "v1"), ("pod-template-hash", "6f8c")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let pod = "productpage-v1-6f8c-x2x";
        let owner = PodDetails::default().owner(pod, "bookinfo", &labels);
        LocalPeer::of_pod(pod, "bookinfo", "10.0.0.9", &labels, owner)
    }

    #[test]
    fn what_one_end_tells_the_other_understands() {
        let local = productpage();
        assert_eq!(local.id, "sidecar~10.0.0.9~productpage-v1-6f8c-x2x.bookinfo~bookinfo.svc.cluster.local");
        assert_eq!(local.peer.workload, "productpage-v1");
        let told = Peer::of_header(local.value.as_bytes(), &[]).unwrap();
        assert_eq!(told, local.peer);
        let any = &local.preface[8..];
        assert_eq!(local.preface[..4], MAGIC.to_be_bytes());
        assert_eq!(local.preface[4..8], (any.len() as u32).to_be_bytes());
        assert_eq!(*of_exchange(any).unwrap(), local.peer);
        let told = Peer::of_baggage(local.baggage.to_str().unwrap()).unwrap();
        assert_eq!((told.workload.as_str(), told.app.as_str()), ("productpage-v1", "productpage"));
    }

    #[test]
    fn the_metadata_of_an_endpoint_names_its_workload() {
        let peer = Peer::of_endpoint("reviews-v2;bookinfo;reviews;v2;Kubernetes").unwrap();
        assert_eq!((peer.workload.as_str(), peer.cluster.as_str()), ("reviews-v2", "Kubernetes"));
        assert_eq!(Peer::of_endpoint("reviews;x"), None);
    }

    #[test]
    fn garbage_from_a_peer_is_no_peer_and_no_panic() {
        let good = base64::decode(productpage().value.as_bytes()).unwrap();
        for end in 0..good.len() {
            let _ = Peer::of_struct(&good[..end], &[]);
            let mut broken = good.clone();
            broken[end] ^= 0xff;
            let _ = Peer::of_struct(&broken, &[]);
            let _ = of_exchange(&broken);
        }
        assert_eq!(Peer::of_header(b"%%%", &[]), None);
    }
}
