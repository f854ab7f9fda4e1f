//! Handshakes between compiled contexts: who is let in, who is not, and why.

use std::sync::Arc;

use mesh_xds::{Node, from_node};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType as RcgenSan,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;
use crate::xds::Ignored;

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// PEM chain and key.
struct Leaf(String, String);

fn ca() -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { pem, issuer: Issuer::new(params, key) }
}

fn leaf(ca: &Ca, dns: &str, uri: &str) -> Leaf {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
    params.subject_alt_names.push(RcgenSan::URI(uri.try_into().unwrap()));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Leaf(params.signed_by(&key, &ca.issuer).unwrap().pem(), key.serialize_pem())
}

fn indent(pem: &str) -> String {
    pem.trim().lines().map(|line| format!("        {line}\n")).collect()
}

fn certificate(leaf: &Leaf) -> String {
    let (chain, key) = (indent(&leaf.0), indent(&leaf.1));
    format!(
        "tls_certificates:\n    - certificate_chain:\n        inline_string: |\n  {}      \n      private_key:\n        \
         inline_string: |\n  {}\n",
        chain.replace('\n', "\n  "),
        key.replace('\n', "\n  ")
    )
}

fn trust(ca: &Ca, names: &str) -> String {
    format!(
        "validation_context:\n      {names}\n      trusted_ca:\n        inline_string: |\n  {}\n",
        indent(&ca.pem).replace('\n', "\n  ")
    )
}

fn socket(kind: &str, common: &[&str], rest: &str) -> TransportSocket {
    let common = common.iter().map(|part| format!("    {part}\n")).collect::<String>();
    let yaml = format!(
        "name: tls\ntyped_config:\n  '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}\n  \
         {rest}\n  common_tls_context:\n{common}"
    );
    from_node(&Node::parse(&yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}")))
        .unwrap_or_else(|e| panic!("{e:?}"))
}

fn with_context<T>(f: impl FnOnce(&Context<'_>) -> T) -> T {
    let stats = Store::default();
    let log_files = LogFiles::start(stats.filesystem().clone()).unwrap();
    f(&Context {
        stats: &stats,
        log_files: &log_files,
        secrets: Default::default(),
        clusters: Default::default(),
        ignored: Ignored::default(),
        needs: Default::default(),
    })
}

fn server(common: &[&str], rest: &str) -> Arc<DownstreamTls> {
    let socket = socket("DownstreamTlsContext", common, rest);
    with_context(|context| downstream(At::root("S"), &socket, context, &mut Files::default()))
        .map(|context| ready(context.unwrap()))
        .unwrap_or_else(|e| panic!("{e}"))
}

fn ready<T: std::fmt::Debug>(context: TlsContext<T>) -> Arc<T> {
    let TlsContext::Ready(context) = context else { panic!("{context:?}") };
    context
}

fn client(common: &[&str], auto_san: bool) -> Arc<UpstreamTls> {
    let socket = socket("UpstreamTlsContext", common, "sni: web.example");
    match with_context(|c| upstream(At::root("C"), &socket, auto_san, c, &mut Files::default())) {
        Ok(Transport::Tls(tls)) => ready(tls),
        other => panic!("{other:?}"),
    }
}

/// Runs a handshake in memory: the client's error, then the server's.
fn handshake(client: &UpstreamTls, server: &DownstreamTls) -> Result<(), String> {
    let name = ServerName::try_from(client.sni.as_deref().unwrap().to_owned()).unwrap();
    let mut client = ClientConnection::new(client.config.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.config.clone()).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|e| format!("client: {e}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn mutual_tls_lets_in_whom_both_sides_trust_and_no_one_else() {
    let (ours, theirs) = (ca(), ca());
    let web = certificate(&leaf(&ours, "web.example", "spiffe://td/ns/a/sa/web"));
    let app = certificate(&leaf(&ours, "app.example", "spiffe://td/ns/a/sa/app"));
    let stranger = certificate(&leaf(&theirs, "app.example", "spiffe://td/ns/a/sa/app"));
    let trusted = trust(&ours, "");
    let require = "require_client_certificate: true";
    let strict = server(&[&web, &trusted], require);
    assert_eq!(&*strict.local_uri_sans[0], "spiffe://td/ns/a/sa/web");
    assert_eq!(handshake(&client(&[&app, &trusted], false), &strict), Ok(()));
    let stranger_error = handshake(&client(&[&stranger, &trusted], false), &strict).unwrap_err();
    assert!(stranger_error.starts_with("server: invalid peer certificate"), "{stranger_error}");
    let nobody = handshake(&client(&[&trusted], false), &strict).unwrap_err();
    assert!(nobody.contains("peer sent no certificates"), "{nobody}");
    let foreign = handshake(&client(&[&app, &trust(&theirs, "")], false), &strict).unwrap_err();
    assert!(foreign.starts_with("client: invalid peer certificate"), "{foreign}");
    // Without `require_client_certificate` nobody must show one, but whoever does must be trusted.
    let lenient = server(&[&web, &trusted], "");
    assert_eq!(handshake(&client(&[&trusted], false), &lenient), Ok(()));
    assert!(handshake(&client(&[&stranger, &trusted], false), &lenient).is_err());
}

#[test]
fn subject_alternative_names_are_matched_as_configured() {
    let ours = ca();
    let web = server(&[&certificate(&leaf(&ours, "*.example", "spiffe://td/ns/a/sa/web"))], "");
    let names = |kind: &str, matcher: &str| {
        trust(
            &ours,
            &format!("match_typed_subject_alt_names: [{{san_type: {kind}, matcher: {{{matcher}}}}}]"),
        )
    };
    for (kind, matcher, good) in [
        ("URI", "exact: 'spiffe://td/ns/a/sa/web'", true),
        ("URI", "prefix: 'spiffe://td/'", true),
        ("URI", "exact: 'spiffe://td/ns/a/sa/other'", false),
        ("DNS", "exact: WEB.example", true),
        ("DNS", "exact: a.b.example", false),
        ("DNS", "exact: 'spiffe://td/ns/a/sa/web'", false),
    ] {
        let result = handshake(&client(&[&names(kind, matcher)], false), &web);
        assert_eq!(result.is_ok(), good, "{kind} {matcher}: {result:?}");
    }
}

#[test]
fn without_a_trusted_ca_any_server_will_do_and_host_names_count_only_when_asked_for() {
    let (ours, theirs) = (ca(), ca());
    let other = server(&[&certificate(&leaf(&ours, "other.example", "spiffe://x/y"))], "");
    assert_eq!(handshake(&client(&["{}"], false), &other), Ok(()));
    assert_eq!(handshake(&client(&[&trust(&ours, "")], false), &other), Ok(()), "web.example was asked for");
    let auto = handshake(&client(&[&trust(&ours, "")], true), &other).unwrap_err();
    assert!(auto.contains("not valid for name"), "{auto}");
    let untrusted = trust(&theirs, "trust_chain_verification: ACCEPT_UNTRUSTED");
    assert_eq!(handshake(&client(&[&untrusted], false), &other), Ok(()));
}

#[test]
fn a_self_signed_certificate_that_is_trusted_itself_is_accepted() {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["web.example".to_owned()]).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let web = server(&[&certificate(&Leaf(pem.clone(), key.serialize_pem()))], "");
    let own = Ca { pem, issuer: ca().issuer };
    assert_eq!(handshake(&client(&[&trust(&own, "")], true), &web), Ok(()));
}

#[test]
fn the_certificate_with_the_asked_name_is_served() {
    let ours = ca();
    let first = certificate(&leaf(&ours, "first.example", "spiffe://x/first"));
    let web = certificate(&leaf(&ours, "web.example", "spiffe://x/web"));
    let both = format!("{first}{}", web.replace("tls_certificates:\n", ""));
    let server = server(&[&both], "");
    assert_eq!(handshake(&client(&[&trust(&ours, "")], true), &server), Ok(()));
}

#[test]
fn versions_and_suites_outside_of_what_both_allow_are_refused() {
    let ours = ca();
    let web = certificate(&leaf(&ours, "web.example", "spiffe://x/web"));
    let old = server(
        &[
            &web,
            "tls_params: {tls_maximum_protocol_version: TLSv1_2, cipher_suites: ['[ECDHE-ECDSA-AES128-GCM-SHA256|X]']}",
        ],
        "",
    );
    let new = client(&["tls_params: {tls_minimum_protocol_version: TLSv1_3}"], false);
    assert!(handshake(&new, &old).is_err());
    assert_eq!(handshake(&client(&["{}"], false), &old), Ok(()));
    let socket = socket("UpstreamTlsContext", &["tls_params: {tls_maximum_protocol_version: TLSv1_1}"], "");
    let error =
        with_context(|c| upstream(At::root("C"), &socket, false, c, &mut Files::default()).unwrap_err());
    assert_eq!(
        error.to_string(),
        "C.typed_config.common_tls_context.tls_params: no version between minimum and maximum is TLSv1_2 or \
         TLSv1_3; allow one"
    );
}

#[test]
fn certificates_that_cannot_serve_are_refused_by_field() {
    let ours = ca();
    let (one, two) = (leaf(&ours, "a", "spiffe://x/1"), leaf(&ours, "a", "spiffe://x/2"));
    let mixed = certificate(&Leaf(one.0.clone(), two.1.clone()));
    let bad = certificate(&Leaf("nothing".to_owned(), one.1.clone()));
    for (common, expected) in [
        (mixed.as_str(), "tls_certificates[0].private_key: does not belong to certificate_chain"),
        (bad.as_str(), "tls_certificates[0].certificate_chain: holds no PEM certificate"),
        ("{}", "S.typed_config.common_tls_context: needs one of tls_certificates"),
    ] {
        let socket = socket("DownstreamTlsContext", &[common], "");
        let error =
            with_context(|c| downstream(At::root("S"), &socket, c, &mut Files::default()).unwrap_err());
        assert!(error.to_string().contains(expected), "{error}");
    }
}
