//! The fields that Istio's control plane sends, each with what becomes of it: a part of `docs/xds-support.md`.
//!
//! `istio_fields.txt` lists the paths as they were recorded; what is said of them here comes from the table that
//! the converters obey.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::support::{Verdict, of_field};

const PATHS: &str = include_str!("istio_fields.txt");

/// Why fields below these paths are ignored or refused, where it is not the general reason. The longest counts.
const REASONS: &[(&str, &str)] = &[
    ("address", "ambient: only node proxies of Istio's own get it"),
    ("authorization", "ambient: only node proxies of Istio's own get it"),
    ("envoy.config.trace", "not one of the tracers that are built: requests are served untraced"),
    ("envoy.extensions.access_loggers.open_telemetry", "remote access logs are not built yet"),
    ("envoy.extensions.filters.http.jwt_authn", "not built yet"),
    ("envoy.extensions.filters.http.ext_authz", "not built yet"),
    ("envoy.extensions.filters.network.ext_authz", "not built yet"),
    ("envoy.extensions.filters.http.wasm", "not built yet"),
    ("envoy.extensions.filters.network.wasm", "not built yet"),
    ("envoy.extensions.filters.http.ratelimit", "not built yet: needs a rate limit service"),
    ("envoy.extensions.filters.network.mysql_proxy", "statistics of another protocol; not built"),
    ("envoy.extensions.filters.network.redis_proxy", "a proxy of its own; not built"),
    (
        "envoy.extensions.filters.listener.original_src",
        "connections to applications carry the client's address anyway",
    ),
    ("envoy.extensions.transport_sockets.internal_upstream", "HBONE is not built"),
    ("envoy.extensions.filters.network.set_filter_state", "HBONE is not built"),
    ("xds.type.matcher", "HBONE is not built"),
];

/// Why fields of these names are refused.
const FIELDS: &[(&str, &str)] = &[
    ("envoy_internal_address", "HBONE is not built: nothing listens within the process"),
    ("internal_listener", "HBONE is not built: nothing listens within the process"),
    ("metadata_key", "HBONE is not built: only a waypoint's clusters have it"),
    ("filter_chain_matcher", "HBONE is not built: only a waypoint's listeners have it"),
    ("pipe", "hosts are known by IP address and port"),
    ("socket_options", "the sockets of pods are opened by mesh-node, with options of its own"),
    ("transparent", "pods are steered without it, and the client's address is kept"),
    ("filter_state_objects_to_log", "servers of access logs are sent no filter state"),
    ("additional_request_headers_to_log", "servers of access logs are sent no headers of choice"),
    ("additional_response_headers_to_log", "servers of access logs are sent no headers of choice"),
    ("additional_response_trailers_to_log", "servers of access logs are sent no headers of choice"),
    ("resolvers", "names are resolved as the node does (resolv.conf)"),
    ("udp_max_queries", "names are resolved as the node does (resolv.conf)"),
];

const IGNORED: &str = "changes nothing that a peer or a pod could notice";
const REFUSED: &str = "not supported: the resource is refused by this path";

/// Root message of a section.
fn root(section: &str) -> Option<&str> {
    Some(match section {
        "cluster" => "envoy.config.cluster.v3.Cluster",
        "cluster_load_assignment" => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "listener" => "envoy.config.listener.v3.Listener",
        "route_configuration" => "envoy.config.route.v3.RouteConfiguration",
        "secret" => "envoy.extensions.transport_sockets.tls.v3.Secret",
        "extension_config" => "envoy.config.core.v3.TypedExtensionConfig",
        "address" | "authorization" => return None,
        typed => typed,
    })
}

/// What becomes of a path of a section.
fn verdict(section: &str, path: &str) -> Verdict {
    if section == "name_table" {
        return Verdict::Honoured;
    }
    let Some(root) = root(section) else { return Verdict::Refused };
    let typed = root == section;
    if of_field(root, "@type") == Verdict::Refused && !root.starts_with("google.protobuf.") {
        return Verdict::Refused;
    }
    let mut message = root;
    for step in segments(path).into_iter().skip(usize::from(!typed)) {
        if message.starts_with("google.protobuf.") {
            return Verdict::Honoured;
        }
        // An Any says what it holds in a section of its own.
        match of_field(message, step) {
            Verdict::Honoured => {}
            other => return other,
        }
        match mesh_xds::field_type(message, step) {
            Some(of) => message = of,
            None => return Verdict::Honoured,
        }
    }
    Verdict::Honoured
}

/// Field names of a path: `a.b{}.c[x.y].d` has `a`, `b`, `c`, `d`.
fn segments(path: &str) -> Vec<&str> {
    let (mut out, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, letter) in path.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth -= 1,
            '.' if depth == 0 => {
                out.push(&path[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&path[start..]);
    out.into_iter().map(|part| part.split(['{', '[']).next().unwrap_or(part)).collect()
}

fn reason(section: &str, path: &str, verdict: Verdict) -> &'static str {
    let known = REASONS.iter().filter(|(of, _)| section.starts_with(of)).max_by_key(|(of, _)| of.len());
    let field = || {
        let segments = segments(path);
        FIELDS.iter().find(|(name, _)| segments.contains(name)).map(|(_, reason)| *reason)
    };
    match (verdict, known) {
        (Verdict::Honoured, _) => "",
        (_, Some((_, reason))) => reason,
        (Verdict::Ignored, None) => IGNORED,
        (Verdict::Refused, None) => field().unwrap_or(REFUSED),
    }
}

/// Sections of the list, in order, with their paths.
fn sections() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in PATHS.lines() {
        match line.strip_prefix("# ") {
            Some(section) => sections.push((section, Vec::new())),
            None => sections.last_mut().expect("a section comes first").1.push(line),
        }
    }
    sections
}

/// The part of the page.
pub(super) fn section() -> String {
    let mut page = String::from(
        "\n## What Istio's control plane sends\n\nEvery field that a current istiod was recorded to set, by its path. A path that ends in \
         `.*` stands for all below it. The content of a typed configuration has a section of its own.\n",
    );
    for (section, paths) in sections() {
        let _ = writeln!(page, "\n### {section}\n\n| field | | |\n| --- | --- | --- |");
        let verdicts: BTreeMap<&str, Verdict> =
            paths.iter().map(|path| (*path, verdict(section, path))).collect();
        let mut covered: Option<(String, Verdict)> = None;
        for path in &paths {
            let of = verdicts[path];
            if covered.as_ref().is_some_and(|(stem, _)| path.starts_with(stem.as_str())) {
                continue;
            }
            let below = |p: &str| {
                p.starts_with(&format!("{path}."))
                    || p.starts_with(&format!("{path}{{"))
                    || p.starts_with(&format!("{path}["))
            };
            let children: Vec<_> = paths.iter().filter(|p| below(p)).collect();
            let dotted = children.iter().all(|p| p.starts_with(&format!("{path}.")));
            let stem = !children.is_empty() && dotted && children.iter().all(|p| verdicts[*p] == of);
            covered = stem.then(|| (format!("{path}."), of));
            let name = if stem { format!("`{path}` `{path}.*`") } else { format!("`{path}`") };
            let class = match of {
                Verdict::Honoured => "honoured",
                Verdict::Ignored => "ignored",
                Verdict::Refused => "rejected",
            };
            let _ = writeln!(page, "| {name} | {class} | {} |", reason(section, path, of));
        }
    }
    page
}

#[test]
fn every_field_of_the_inventory_is_in_the_list() {
    let inventory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data/istiod/INVENTORY.md"))
        .find(|file| file.is_file());
    let Some(inventory) = inventory else {
        eprintln!("SKIPPED: no shared/data/istiod beside the repository");
        return;
    };
    let text = std::fs::read_to_string(inventory).unwrap();
    let fields = text.split_once("\n## Fields of resources\n").expect("the section of fields").1;
    let mut list = String::new();
    for line in fields.lines() {
        if let Some(section) = line.strip_prefix("### ") {
            let _ = writeln!(list, "# {section}");
        } else if let Some(path) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
            let _ = writeln!(list, "{path}");
        }
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/xds/istio_fields.txt");
    if std::env::var_os("MESH_WRITE_DOCS").is_some() {
        std::fs::write(file, &list).unwrap();
    }
    assert!(
        std::fs::read_to_string(file).unwrap() == list,
        "istio_fields.txt is old: MESH_WRITE_DOCS=1 cargo test -p mesh-node istio_fields"
    );
}

#[test]
fn every_field_of_the_list_is_on_the_page_by_path_or_stem() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/xds-support.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (section, paths) in sections() {
        let part = page
            .split_once(&format!("\n### {section}\n"))
            .unwrap_or_else(|| panic!("no section {section}"))
            .1;
        let part = part.split("\n### ").next().unwrap_or_default();
        for path in paths {
            let by_stem =
                path.match_indices('.').any(|(at, _)| part.contains(&format!("`{}.*`", &path[..at])));
            assert!(part.contains(&format!("`{path}`")) || by_stem, "{section}: {path}");
        }
    }
}
