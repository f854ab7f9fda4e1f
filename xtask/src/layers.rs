//! `cargo xtask layers`: checks that imports follow the stages of `mesh-node` and that crates
//! depend only on what they may.
//!
//! Exists because the order of the stages is what lets a reader follow a request from file to file;
//! a compiler does not hold it within one crate. It reads source text only: it must stay a few lines of
//! code that a newcomer understands, and must not grow into a parser of Rust.
//!
//! What it sees: every path that starts with `crate::`, with `super::` reaching the crate's root, or
//! with the name of a crate in [`PROTOBUF`] or [`MODEL_BANS`]. Comments, strings and code under
//! `#[cfg(test)]` are left out.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The stages of the data path in the order in which a connection meets them.
const STAGES: [&str; 7] = ["capture", "listener", "filter", "router", "cluster", "upstream", "http"];
/// What every stage may use beside the stages after it. `drain`, `readiness`, `budget`, `pipe`, `resting`, `runtime`
/// and `turn` are leaves: they import nothing themselves.
const SHARED: [&str; 11] = [
    "model",
    "identity",
    "telemetry",
    "drain",
    "readiness",
    "budget",
    "stream",
    "pipe",
    "resting",
    "runtime",
    "turn",
];
/// Imports against the order, each with its reason: stage, what it imports.
const EXCEPTIONS: [(&str, &str); 1] = [
    // A connection belongs to the endpoint that was chosen and counts against its cluster's limits for as
    // long as it is open.
    ("upstream", "cluster"),
];
/// Modules outside the data path, with what each may import. A module in neither list is free to be
/// imported only by the composition root.
const BESIDE: [(&str, &[&str]); 17] = [
    // The settings of capture are a part of the settings.
    ("config", &["xds", "capture", "model", "identity", "telemetry", "runtime"]),
    ("xds", &["model", "identity", "telemetry", "runtime"]),
    // Reaches servers by way of clusters, and gives clusters their endpoints and secrets.
    ("dynamic", &["xds", "cluster", "upstream", "model", "identity", "telemetry", "runtime"]),
    ("admin", &["cluster", "http", "model", "identity", "telemetry", "drain", "readiness", "runtime"]),
    // Says to capture which pods there are.
    ("kubernetes", &["capture", "model"]),
    ("dns", &["model", "telemetry"]),
    ("telemetry", &["model", "identity", "drain", "runtime", "turn"]),
    ("identity", &["model"]),
    // A compiled resource carries the handles of its statistics, of its drain and of its limits.
    ("model", &["identity", "telemetry", "drain", "budget", "runtime"]),
    ("budget", &[]),
    // A socket of the proxy is a workload's.
    ("stream", &["model", "pipe", "resting"]),
    ("pipe", &[]),
    ("resting", &[]),
    ("drain", &[]),
    ("readiness", &[]),
    ("runtime", &[]),
    ("turn", &[]),
];
/// The composition root sees everything.
const ROOT: [&str; 3] = ["main", "lib", "app"];
/// Crates of protobuf messages, and who may name them.
const PROTOBUF: [&str; 5] = ["mesh_xds", "envoy_types", "prost", "prost_types", "prost_reflect"];
const PROTOBUF_ALLOWED: [&str; 3] = ["xds", "config", "dynamic"];
/// Compiled configuration is plain data.
const MODEL_BANS: [&str; 2] = ["tokio", "prost"];
/// Crate, and which of its dependencies are allowed; `None` leaves crates from outside the workspace
/// free and lists only our own.
const CRATES: [(&str, &[&str], Outside); 7] = [
    ("mesh-common", &[], Outside::Refused),
    ("mesh-ebpf", &["mesh-common", "aya-ebpf", "aya-log-ebpf"], Outside::Refused),
    ("mesh-xds", &[], Outside::Free),
    ("mesh-node", &["mesh-common", "mesh-xds"], Outside::Free),
    ("mesh-control", &["mesh-xds"], Outside::Free),
    ("meshctl", &["mesh-xds"], Outside::Free),
    ("xtask", &[], Outside::Free),
];

/// Whether crates from outside the workspace are a matter of the rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outside {
    Free,
    Refused,
}

/// One broken rule, at a place.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: PathBuf,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.rule)
    }
}

/// Checks the workspace at `root`; prints every violation and fails if there is one.
pub fn run(root: &Path) -> Result<()> {
    let mut violations = Vec::new();
    let source = root.join("mesh-node/src");
    let mut files = Vec::new();
    rust_files(&source, &mut files)?;
    let texts = files
        .iter()
        .map(|file| {
            Ok((file, fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let test_files: BTreeSet<PathBuf> =
        texts.iter().flat_map(|(file, text)| test_modules(file, &code_only(text))).collect();
    for (file, text) in &texts {
        if test_files.iter().any(|test| file.starts_with(test.with_extension("")) || *file == test) {
            continue;
        }
        let path = module_path(&source, file);
        for (line, rule) in check_module(&path, text) {
            violations.push(Violation { file: relative(root, file), line, rule });
        }
    }
    let mut crates = 0;
    for (name, allowed, outside) in CRATES {
        let manifest = root.join(name).join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        crates += 1;
        for (line, rule) in check_manifest(name, &text, allowed, outside) {
            violations.push(Violation { file: relative(root, &manifest), line, rule });
        }
    }
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} import(s) against the layering", violations.len());
    }
    println!("layers: {} files of mesh-node and {crates} crates follow the order", files.len());
    Ok(())
}

/// The rules for one file of `mesh-node`: line and rule for each import against them.
fn check_module(path: &[String], text: &str) -> Vec<(usize, String)> {
    let module = path.first().map_or("lib", String::as_str);
    let mut found = Vec::new();
    for import in imports(path.len(), &without_tests(&code_only(text))) {
        let (name, line) = (import.name.as_str(), import.line);
        if !import.local {
            if PROTOBUF.contains(&name) && !PROTOBUF_ALLOWED.contains(&module) && !ROOT.contains(&module) {
                found.push((
                    line,
                    format!("`{module}` names `{name}`: only xds/ and config.rs see protobuf types"),
                ));
            }
            if module == "model" && MODEL_BANS.contains(&name) {
                found.push((line, format!("`model` names `{name}`: compiled configuration is plain data")));
            }
            continue;
        }
        if ROOT.contains(&module) || name == module || !is_module(name) {
            continue;
        }
        if name == "app" {
            found.push((line, format!("`{module}` imports `app`: nothing imports the composition root")));
        } else if let Some(stage) = STAGES.iter().position(|stage| *stage == module) {
            let allowed = STAGES[stage + 1..].contains(&name) || SHARED.contains(&name);
            if !allowed && !EXCEPTIONS.contains(&(module, name)) {
                found.push((
                    line,
                    format!(
                        "stage `{module}` imports `{name}`: a stage sees only later stages and {SHARED:?}"
                    ),
                ));
            }
        } else if let Some((_, allowed)) = BESIDE.iter().find(|(beside, _)| *beside == module)
            && !allowed.contains(&name)
        {
            found.push((line, format!("`{module}` imports `{name}`: it may import only {allowed:?}")));
        }
    }
    found
}

/// Names that the rules speak of; `crate::Foo` for a type re-exported at the root is none of them.
fn is_module(name: &str) -> bool {
    name == "app" || STAGES.contains(&name) || BESIDE.iter().any(|(beside, _)| *beside == name)
}

/// The first name of a path that leaves its module: `local` when it is a module of this crate.
struct Import {
    name: String,
    line: usize,
    local: bool,
}

/// `depth` is how many modules below the crate's root the file is.
fn imports(depth: usize, code: &str) -> Vec<Import> {
    let tokens = tokens(code);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.0);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (name, line) = tokens[at];
        let starts_path = at == 0 || text(at - 1) != "::";
        if starts_path && (name == "crate" || name == "super") && text(at + 1) == "::" {
            let mut climbed = usize::from(name == "super");
            let mut next = at + 2;
            while text(next) == "super" && text(next + 1) == "::" {
                climbed += 1;
                next += 2;
            }
            if name == "crate" || climbed >= depth.max(1) {
                for (name, line) in heads(&tokens, next) {
                    found.push(Import { name, line, local: true });
                }
            }
            at = next;
        } else if starts_path
            && (PROTOBUF.contains(&name) || MODEL_BANS.contains(&name))
            && text(at + 1) == "::"
        {
            found.push(Import { name: name.to_owned(), line, local: false });
        }
        at += 1;
    }
    found
}

/// The names that begin a path or each member of a `{a::b, c}` group.
fn heads(tokens: &[(&str, usize)], at: usize) -> Vec<(String, usize)> {
    match tokens.get(at) {
        Some(("{", _)) => {}
        Some((name, line)) => return vec![((*name).to_owned(), *line)],
        None => return Vec::new(),
    }
    let (mut nesting, mut names, mut expect_name) = (0, Vec::new(), true);
    for (token, line) in &tokens[at..] {
        match *token {
            "{" => nesting += 1,
            "}" => nesting -= 1,
            "," => expect_name = nesting == 1,
            name if expect_name && nesting == 1 => {
                names.push((name.to_owned(), *line));
                expect_name = false;
            }
            _ => {}
        }
        if nesting == 0 {
            break;
        }
    }
    names
}

/// Words, `::` and single punctuation characters, each with its line.
fn tokens(code: &str) -> Vec<(&str, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut line, mut rest) = (Vec::new(), 1, code);
    while let Some(c) = rest.chars().next() {
        let length = if is_word(c) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        if c == '\n' {
            line += 1;
        }
        if !c.is_whitespace() {
            found.push((&rest[..length], line));
        }
        rest = &rest[length..];
    }
    found
}

/// The text with comments and the inside of literals blanked; lines stay where they are.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if let Some(hashes) = raw_string(rest, out.chars().last()) {
            let end = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..].find(&end).map_or(rest.len(), |found| open + found + end.len())
        } else if rest.starts_with('\'') && is_char_literal(rest) {
            quoted(rest, '\'')
        } else {
            let c = rest.chars().next().map_or(1, char::len_utf8);
            out.push_str(&rest[..c]);
            at += c;
            continue;
        };
        out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        at += length;
    }
    out
}

/// Length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a literal with its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// How many `#` a raw string that begins here has.
fn raw_string(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| (c.is_alphanumeric() && c != 'b') || c == '_') {
        return None;
    }
    let rest = text.strip_prefix('r')?;
    let hashes = rest.chars().take_while(|c| *c == '#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Tells `'a'` and `'\n'` from the lifetime `'a`.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

const TEST_ATTRIBUTE: &str = "#[cfg(test)]";

/// Code with each item under `#[cfg(test)]` blanked.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find(TEST_ATTRIBUTE) {
        let end = item_end(&out[start..]) + start;
        let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    out
}

/// Where the item at the start of `code` ends: at its `;`, or where its braces close.
fn item_end(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Files of `#[cfg(test)] mod name;` declarations in `file`.
fn test_modules(file: &Path, code: &str) -> Vec<PathBuf> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folder = file.parent().unwrap_or(Path::new(""));
    let folder = if ["mod", "lib", "main"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
    code.match_indices(TEST_ATTRIBUTE)
        .filter_map(|(at, _)| {
            let item = &code[at + TEST_ATTRIBUTE.len()..at + item_end(&code[at..])];
            let name = item.split("mod ").nth(1)?.trim().strip_suffix(';')?.trim();
            Some(folder.join(format!("{name}.rs")))
        })
        .collect()
}

/// `src/filter/http/jwt.rs` is `[filter, http, jwt]`; `src/lib.rs` is empty.
fn module_path(source: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(source).unwrap_or(file).with_extension("");
    let mut path: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    path
}

/// The rules for one manifest: line and rule for each dependency against them.
fn check_manifest(name: &str, text: &str, allowed: &[&str], outside: Outside) -> Vec<(usize, String)> {
    let ours =
        |dependency: &str| CRATES.iter().any(|(name, ..)| *name == dependency) || dependency == "mesh-tests";
    let mut section = "";
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]")
            && !section.contains("dev-")
            && !section.contains("workspace")
        {
            let dependency: String =
                line.chars().take_while(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect();
            if dependency.is_empty() || allowed.contains(&dependency.as_str()) {
                continue;
            }
            if ours(&dependency) || outside == Outside::Refused {
                found.push((
                    index + 1,
                    format!("`{name}` depends on `{dependency}`: it may depend only on {allowed:?}"),
                ));
            }
        }
    }
    found
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn relative(root: &Path, file: &Path) -> PathBuf {
    file.strip_prefix(root).unwrap_or(file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(module: &str, text: &str) -> Vec<usize> {
        let path: Vec<String> = module.split("::").map(str::to_owned).collect();
        check_module(&path, text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_stage_that_reaches_back_is_reported_with_its_line() {
        assert_eq!(rules("router::matcher", "use crate::cluster::Set;\nuse crate::listener::Socket;"), [2]);
        assert_eq!(rules("router", "use crate::{cluster, model::{Route, Host},\n filter::Chain};"), [2]);
        assert_eq!(rules("router", "fn f() { super::capture::go() }"), [1]);
        assert!(rules("router::matcher", "use super::capture;").is_empty(), "a sibling inside router/");
        assert_eq!(rules("router::matcher", "use super::super::capture;"), [1]);
    }

    #[test]
    fn comments_strings_and_tests_are_not_imports() {
        let text = "// crate::listener\n/* crate::listener /* x */ */ const A: &str = \"crate::listener\";\n\
                    const B: &str = r#\"crate::listener \"quoted\"\"#; const C: char = '\"'; fn f<'a>(_: &'a str) {}\n\
                    #[cfg(test)]\nmod tests { use crate::listener::X; }\nuse crate::app::App;";
        assert_eq!(rules("router", text), [6]);
    }

    #[test]
    fn protobuf_types_outside_their_modules_are_reported() {
        assert_eq!(rules("filter", "use mesh_xds::types::Listener;"), [1]);
        assert!(rules("xds::listener", "use mesh_xds::types::Listener;").is_empty());
        assert_eq!(rules("model", "use std::time::Duration;\nuse tokio::sync::watch;"), [2]);
    }

    #[test]
    fn a_dependency_of_the_shared_crate_is_reported() {
        let manifest = "[package]\nname = \"mesh-common\"\n[dependencies]\nserde.workspace = true\n[dev-dependencies]\nlibc = \"1\"";
        let found = check_manifest("mesh-common", manifest, &[], Outside::Refused);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 4);
    }

    #[test]
    fn test_only_files_are_known_by_their_declaration() {
        let found = test_modules(Path::new("src/router/mod.rs"), "#[cfg(test)]\nmod properties;");
        assert_eq!(found, [PathBuf::from("src/router/properties.rs")]);
    }
}
