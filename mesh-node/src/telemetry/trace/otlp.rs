//! Spans as OpenTelemetry's collectors read them: `ExportTraceServiceRequest`, written field by field. Numbers are
//! those of `opentelemetry/proto/trace/v1/trace.proto`.

use super::{Span, nanos_since_epoch};

/// The name of the library that makes spans, and of this kind of proxy.
const SCOPE: &str = "mesh-node";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const KIND_SERVER: u64 = 2;
const KIND_CLIENT: u64 = 3;
const STATUS_ERROR: u64 = 2;
/// Of `flags`: it is known whether the parent is another process's, and it is.
const HAS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Attributes of every resource beside those of the configuration.
pub fn sdk_attributes() -> [(String, String); 3] {
    [("telemetry.sdk.language", "rust"), ("telemetry.sdk.name", SCOPE), ("telemetry.sdk.version", VERSION)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// One request with these spans of one resource.
pub fn request(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let mut of = Message::default();
    for attribute in resource {
        of.message(1, &key_value(attribute));
    }
    let mut scope = Message::default();
    scope.text(1, SCOPE);
    scope.text(2, VERSION);
    let mut scoped = Message::default();
    scoped.message(1, &scope);
    for one in spans {
        scoped.message(2, &span(one));
    }
    let mut all = Message::default();
    all.message(1, &of);
    all.message(2, &scoped);
    let mut request = Message::default();
    request.message(1, &all);
    request.0
}

fn span(span: &Span) -> Message {
    let context = &span.context;
    let mut out = Message::default();
    let trace = [context.trace_high.unwrap_or(0).to_be_bytes(), context.trace_low.to_be_bytes()].concat();
    out.bytes(1, &trace);
    out.bytes(2, &context.id.to_be_bytes());
    if !context.state.is_empty() {
        out.text(3, &context.state);
    }
    if let Some(parent) = context.parent {
        out.bytes(4, &parent.to_be_bytes());
    }
    out.text(5, &span.name);
    out.varint(6, if span.client { KIND_CLIENT } else { KIND_SERVER });
    out.fixed64(7, nanos_since_epoch(span.start));
    out.fixed64(8, nanos_since_epoch(span.start + span.duration));
    for tag in &span.tags {
        out.message(9, &key_value(tag));
    }
    for (at, name) in &span.events {
        let mut event = Message::default();
        event.fixed64(1, nanos_since_epoch(*at));
        event.text(2, name);
        out.message(11, &event);
    }
    if span.failed {
        let mut status = Message::default();
        status.varint(3, STATUS_ERROR);
        out.message(15, &status);
    }
    let remote = if context.remote_parent { IS_REMOTE } else { 0 };
    out.fixed32(16, u32::from(context.sampled) | HAS_REMOTE | remote);
    out
}

/// `KeyValue` with a text value.
fn key_value((key, value): &(String, String)) -> Message {
    let mut any = Message::default();
    any.text(1, value);
    let mut out = Message::default();
    out.text(1, key);
    out.message(2, &any);
    out
}

/// An encoded message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, number: u64, value: u64) {
        self.raw(number << 3);
        self.raw(value);
    }

    fn fixed64(&mut self, number: u64, value: u64) {
        self.raw(number << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn fixed32(&mut self, number: u64, value: u32) {
        self.raw(number << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, number: u64, value: &[u8]) {
        self.raw(number << 3 | 2);
        self.raw(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, number: u64, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    fn message(&mut self, number: u64, value: &Self) {
        self.bytes(number, &value.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::span;
    use super::*;

    #[test]
    fn a_collector_finds_every_field_under_its_number() {
        let bytes = super::span(&span()).0;
        let mut expected = vec![0x0a, 16];
        expected.extend([
            0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c,
        ]);
        expected.extend([0x12, 8, 0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        expected.extend(b"\x1a\x03a=b");
        expected.extend([0x22, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend(b"\x2a\x02op\x30\x03");
        expected.push(0x39);
        expected.extend(1_000_001_000u64.to_le_bytes());
        expected.push(0x41);
        expected.extend(1_000_251_000u64.to_le_bytes());
        expected.extend(b"\x4a\x14\x0a\x09component\x12\x07\x0a\x05proxy");
        expected.extend(b"\x4a\x0a\x0a\x04zone\x12\x02\x0a\x00");
        expected.extend(b"\x5a\x26\x09");
        expected.extend(1_000_000_000u64.to_le_bytes());
        expected.extend(b"\x12\x1bfirst_upstream_tx_byte_sent");
        expected.extend([0x7a, 2, 0x18, 2]);
        expected.extend([0x85, 1, 1, 3, 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_request_names_its_service_before_its_spans() {
        let resource = [("service.name".to_owned(), "a.b".to_owned())];
        let bytes = request(&resource, &[span()]);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.find("service.name").unwrap() < text.find("component").unwrap());
        // A length that does not fit one byte is written in two.
        let whole = bytes.len() - 3;
        assert_eq!(bytes[..3], [0x0a, (whole & 0x7f) as u8 | 0x80, (whole >> 7) as u8]);
    }
}
