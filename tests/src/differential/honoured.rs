//! Every field that `docs/xds-support.md` calls honoured has a test that would notice if it were not: a case of the
//! differential suite whose configuration sets it, or a test that `tests/honoured.txt` names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::{Node, from_node};

use super::bootstrap::bootstrap;
use super::case::CaseFile;

/// Message (with `envoy.`, where it is Envoy's) and field.
type Field = (String, String);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fields of the page's table.
fn honoured() -> BTreeSet<Field> {
    let page = read("docs/xds-support.md");
    let table = page.split_once("| message (`envoy.…`) |").expect("the table").1;
    let mut fields = BTreeSet::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let message = cells[1].trim_matches('`');
        let full = format!("envoy.{message}");
        let known = mesh_xds::fields_of(&full).is_some();
        let message = if known { full } else { message.to_owned() };
        fields
            .extend(cells[2].split(", ").filter(|f| !f.is_empty()).map(|f| (message.clone(), f.to_owned())));
    }
    assert!(fields.len() > 500, "{}", fields.len());
    fields
}

/// The fields that configurations of the differential suite set.
fn compared_with_envoy() -> BTreeSet<Field> {
    let mut fields = BTreeSet::new();
    for entry in std::fs::read_dir(repository().join("tests/differential")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "yaml") || path.ends_with("known.yaml") {
            continue;
        }
        let file = CaseFile::read(&path).unwrap();
        let ip = Ipv4Addr::LOCALHOST.into();
        let text = bootstrap(&file, ip, Path::new("/certs"), Path::new("/log")).unwrap();
        let node = Node::parse(&text).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        let message: Bootstrap =
            from_node(&node).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        mesh_xds::visit(&message, &mut |set| {
            fields.insert((set.message.to_owned(), set.field.to_owned()));
            true
        });
    }
    fields
}

/// `tests/honoured.txt`: `MESSAGE FIELD FILE TEST` for fields that need another test.
fn named() -> BTreeMap<Field, (String, String)> {
    let mut named = BTreeMap::new();
    for line in read("tests/honoured.txt").lines().filter(|line| !line.starts_with('#')) {
        let [message, field, file, test] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line:?} is not MESSAGE FIELD FILE TEST")
        };
        let field = (message.to_owned(), field.to_owned());
        assert!(named.insert(field, (file.to_owned(), test.to_owned())).is_none(), "twice: {line}");
    }
    named
}

/// Is there a test of that name in the file?
fn is_test(text: &str, test: &str) -> bool {
    let Some(at) = text.find(&format!("fn {test}(")) else { return false };
    let before = text[..at].trim_end().trim_end_matches("async").trim_end();
    before.ends_with("#[test]") || before.ends_with(']') && before.rfind("#[tokio::test").is_some()
}

#[test]
fn nothing_is_called_honoured_without_a_test() {
    let (honoured, compared, named) = (honoured(), compared_with_envoy(), named());
    let untested: Vec<String> = honoured
        .iter()
        .filter(|field| !compared.contains(*field) && !named.contains_key(*field))
        .map(|(message, field)| format!("{message} {field}"))
        .collect();
    assert!(
        untested.is_empty(),
        "{} fields are called honoured and no test sets them; write one and name it in tests/honoured.txt:\n{}",
        untested.len(),
        untested.join("\n")
    );
    for ((message, field), (file, test)) in &named {
        let text = read(file);
        assert!(is_test(&text, test), "{message} {field}: {file} has no test {test}");
        assert!(honoured.contains(&(message.clone(), field.clone())), "{message} {field} is not honoured");
        let compared = compared.contains(&(message.clone(), field.clone()));
        assert!(!compared, "{message} {field} is compared with Envoy: take it out of tests/honoured.txt");
    }
}

#[test]
fn differences_from_envoy_are_listed_for_readers_as_the_suite_knows_them() {
    let known: BTreeMap<String, String> =
        serde_yaml_ng::from_str(&read("tests/differential/known.yaml")).unwrap();
    let mut page = String::from(include_str!("differences.md"));
    for (case, reason) in &known {
        page.push_str(&format!("| {case} | {reason} |\n"));
    }
    let path = repository().join("tests/differential/DIFFERENCES.md");
    if std::env::var_os("MESH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "DIFFERENCES.md is old: MESH_WRITE_DOCS=1 cargo test -p mesh-tests --lib honoured"
    );
}
