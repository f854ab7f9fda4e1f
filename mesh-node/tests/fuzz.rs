//! Runs the fuzz targets over mutations of a corpus, on a stable toolchain: a moment in every test run, and for as
//! long as `MESH_FUZZ_SECONDS` says (for each target) when somebody wants to know more. `MESH_FUZZ_TARGET` runs one only.
//!
//! An input that fails is written to the temporary folder, and its name printed.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::prost::{Message, Name};
use mesh_xds::{Node, from_node};
use targets::TARGETS;

/// In every test run.
const MOMENT: Duration = Duration::from_millis(700);

/// What mutations start from, for one target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let text = |all: &[&str]| all.iter().map(|text| text.as_bytes().to_vec()).collect();
    match target {
        "bootstrap_text" => vec![CONFIG.as_bytes().to_vec()],
        "log_format" => text(&[
            "[%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH):20%\" \
             %DYNAMIC_METADATA(a:b:c)% %FILTER_STATE(x:PLAIN)% %RESPONSE_CODE%%%\n",
            "%COMMON_DURATION(DS_RX_BEG:US_TX_END:ms)% %GRPC_STATUS(CAMEL_STRING)% %QUERY_PARAM(q):3%",
        ]),
        "h1_request" | "http1" => text(&[
            "GET /r/x?q=ax HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n\r\nGET /d HTTP/1.0\r\n\r\n",
            "POST /a/b HTTP/1.1\r\nHost: a\r\nx: abc\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: v\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
            "CONNECT b:80 HTTP/1.1\r\nHost: b\r\n\r\nxyz",
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: c=1; d\r\n\r\n",
            "OPTIONS http://h:1/%2F../x HTTP/1.1\r\nHost: a\r\nOrigin: https://o\r\nAccess-Control-Request-Method: GET\r\n\r\n",
            "POST /g HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc-web-text\r\nContent-Length: 8\r\n\r\nAAAAAAA=",
            "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-fault-abort-request: 503\r\nbaggage: k8s.pod.name=p\r\n\r\n",
        ]),
        "h1_response" => text(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.0 304 \r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ]),
        "h1_chunk" => text(&[
            "3\r\nabc\r\n0\r\n\r\n",
            "a;x=y\r\n0123456789\r\n00\r\nX-T: v\r\n\r\n",
            "ffffffffffffffff\r\nab",
        ]),
        "proxy_header" => text(&[
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\nGET /",
            "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
            "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0cabcdefghijkl",
            "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0x",
        ]),
        "mongo" => vec![
            b"\x2f\0\0\0\x07\0\0\0\0\0\0\0\xd4\x07\0\0\0\0\0\0db.a\0\0\0\0\0\0\0\0\0\x0e\0\0\0\x10_id\0\x01\0\0\0\0".to_vec(),
            b"\x24\0\0\0\x09\0\0\0\x07\0\0\0\x01\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0".to_vec(),
        ],
        "http2" => vec![frames(&[
            (4, 0, 0, b""),
            // :method GET, :scheme http, :path /r/x, :authority a
            (1, 4, 1, b"\x82\x86\x04\x04/r/x\x41\x01a"),
            (1, 4, 3, b"\x83\x86\x84\x41\x01a\x40\x01x\x03abc"),
            (0, 0, 3, b"body"),
            (9, 4, 3, b"\x40\x01t\x01v"),
            (8, 0, 0, b"\0\0\xff\xff"),
            (3, 0, 1, b"\0\0\0\x08"),
            (6, 0, 0, b"12345678"),
            (2, 0, 5, b"\0\0\0\0\x10"),
            (7, 0, 0, b"\0\0\0\0\0\0\0\0"),
        ])],
        kind => messages(kind),
    }
}

/// HTTP/2 frames of type, flags, stream and payload.
fn frames(all: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, flags, stream, payload) in all {
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        out.extend_from_slice(&[*kind, *flags]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(payload);
    }
    out
}

/// A configuration with much in it.
const CONFIG: &str = include_str!("../fuzz/corpus.yaml");

fn message<T: Message + Name + Default>(yaml: &str) -> T {
    from_node(&Node::parse(yaml).expect("YAML")).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Encoded resources of a kind.
fn messages(kind: &str) -> Vec<Vec<u8>> {
    let bootstrap: Bootstrap = message(CONFIG);
    let resources = bootstrap.static_resources.clone().unwrap_or_default();
    let manager: mesh_xds::pb::envoy::config::listener::v3::Listener =
        message(include_str!("../fuzz/manager.yaml"));
    match kind {
        "bootstrap" => vec![bootstrap.encode_to_vec()],
        "cluster" => resources.clusters.iter().map(Message::encode_to_vec).collect(),
        "endpoints" => resources
            .clusters
            .iter()
            .filter_map(|c| Some(c.load_assignment.as_ref()?.encode_to_vec()))
            .collect(),
        "listener" => resources.listeners.iter().chain([&manager]).map(Message::encode_to_vec).collect(),
        "routes" => {
            use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
            let filters = resources.listeners.iter().chain([&manager]).flat_map(|l| &l.filter_chains);
            let configs = filters.flat_map(|chain| &chain.filters).filter_map(|filter| {
                use mesh_xds::pb::envoy::config::listener::v3::filter::ConfigType;
                let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { return None };
                mesh_xds::unpack::<hcm::HttpConnectionManager>(any)?.ok()?.route_specifier
            });
            let tables = configs.filter_map(|of| match of {
                hcm::http_connection_manager::RouteSpecifier::RouteConfig(table) => {
                    Some(table.encode_to_vec())
                }
                _ => None,
            });
            tables.collect()
        }
        "secret" => resources.secrets.iter().map(Message::encode_to_vec).collect(),
        "extension" => {
            let yaml = "{name: f, typed_config: {'@type': \
                        type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1}}";
            let config: mesh_xds::pb::envoy::config::core::v3::TypedExtensionConfig = message(yaml);
            vec![config.encode_to_vec()]
        }
        "name_table" => {
            use mesh_xds::istio::nds::{NameInfo, NameTable};
            let info = NameInfo { ips: vec!["10.0.0.1".to_owned(), "::1".to_owned()], ..NameInfo::default() };
            let mut table = NameTable::default();
            table.table.insert("a.b.svc.cluster.local".to_owned(), info);
            vec![table.encode_to_vec()]
        }
        other => panic!("no corpus for {other}"),
    }
}

/// One more input: a few changes of one that is known.
fn mutated(corpus: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    const TOKENS: [&[u8]; 16] = [
        b"\r\n",
        b"\n",
        b"\0",
        b"\xff\xff\xff\xff",
        b"\x80",
        b":",
        b" ",
        b"\t",
        b"%",
        b"*",
        b"chunked",
        b"-1",
        b"18446744073709551616",
        b"(",
        b"\xe2\x82\xac",
        b"{}",
    ];
    let mut input = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..16)).min(input.len());
        match random.u8(..8) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, TOKENS[random.usize(..TOKENS.len())].iter().copied())),
            4 => {
                let piece = input[at..end].to_vec();
                drop(input.splice(at..at, piece));
            }
            5 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = random.usize(..=other.len());
                let to = (from + random.usize(..64)).min(other.len());
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            6 => input.truncate(at),
            _ if at < input.len() => input[at] = input[at].wrapping_add(1),
            _ => {}
        }
    }
    input
}

#[test]
fn no_input_makes_a_converter_or_a_codec_panic() {
    let seconds = std::env::var("MESH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let long = seconds.map_or(MOMENT, Duration::from_secs);
    let only = std::env::var("MESH_FUZZ_TARGET").ok();
    // Long runs differ from one another; the moment in every test run is always the same.
    let mut random = if seconds.is_some() { fastrand::Rng::new() } else { fastrand::Rng::with_seed(7) };
    for (name, target) in TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name))
    {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        corpus.iter().for_each(|input| target(input));
        let (begun, mut runs) = (Instant::now(), 0_u64);
        while begun.elapsed() < long {
            let input = mutated(&corpus, &mut random);
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| target(&input)));
            runs += 1;
            if outcome.is_err() {
                let file = std::env::temp_dir().join(format!("mesh-fuzz-{name}-{}", std::process::id()));
                std::fs::write(&file, &input).unwrap();
                panic!("{name} failed; its input is {}", file.display());
            }
        }
        println!("{name}: {runs} inputs");
    }
}

/// Inputs that failed once (`fuzz/found/TARGET-*`).
#[test]
fn what_failed_once_does_not_fail_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/found");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name().into_string().unwrap();
        let (name, _) = file.split_once('-').unwrap_or_else(|| panic!("{file} is not TARGET-WHAT"));
        let (_, target) =
            TARGETS.iter().find(|(of, _)| *of == name).unwrap_or_else(|| panic!("no target {name}"));
        target(&std::fs::read(entry.path()).unwrap());
    }
}
