//! Nothing that `docs/xds-support.md` calls honoured is only said to be: each such field is changed in a configuration
//! that sets it, and the compiled configuration must differ, or the change be refused at that field.
//!
//! The configurations are those of the differential suite, where Envoy says what a field does, and the samples in
//! `tests/honoured/`, which set what no case of the suite does. What is compiled is compared as it prints, without
//! the hashes of messages; so a field that is only stored must be read by the data path, which the suites see.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use mesh_node::config::bootstrap::Source;
use mesh_node::telemetry::log_file::LogFiles;
use mesh_node::telemetry::stats::{Query, Store};
use mesh_node::xds;
use mesh_tests::differential;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::pb::envoy::service::runtime::v3::Runtime;
use mesh_xds::{Node, from_node};
use serde_json::{Map, Value};

/// Full name of a message, and a field of it.
type Field = (String, String);

/// How often a field is tried in other places before it counts as one without effect.
const PLACES: usize = 4;

/// What shows nowhere, for a reason: names of extensions, whose types decide what they are, in Envoy as here; the name by
/// which a server gives endpoints; extensions of which one type is known, and which say nothing more.
const LABELS: [(&str, &str); 15] = [
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name"),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "request_id_extension",
    ),
    ("envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension", "typed_config"),
    ("envoy.config.accesslog.v3.AccessLog", "name"),
    ("envoy.config.accesslog.v3.ExtensionFilter", "name"),
    ("envoy.config.cluster.v3.Cluster.CustomClusterType", "name"),
    ("envoy.config.cluster.v3.Cluster.TransportSocketMatch", "name"),
    ("envoy.config.cluster.v3.Filter", "name"),
    ("envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.MetadataCredentialsFromPlugin", "name"),
    ("envoy.config.core.v3.TransportSocket", "name"),
    ("envoy.config.core.v3.TypedExtensionConfig", "name"),
    ("envoy.config.listener.v3.ListenerFilter", "name"),
    ("envoy.config.route.v3.RetryPolicy.RetryHostPredicate", "name"),
    ("envoy.config.route.v3.RetryPolicy.RetryPriority", "name"),
    ("envoy.config.route.v3.RetryPolicy.RetryHostPredicate", "typed_config"),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// The fields of the page's table.
fn honoured() -> BTreeSet<Field> {
    let page = std::fs::read_to_string(repository().join("docs/xds-support.md")).unwrap();
    let table = page.split_once("| message (`envoy.…`) |").expect("the table").1;
    let mut fields = BTreeSet::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let message = cells[1].trim_matches('`');
        let full = format!("envoy.{message}");
        let message = if mesh_xds::fields_of(&full).is_some() { full } else { message.to_owned() };
        let named = cells[2].split(", ").filter(|field| !field.is_empty());
        fields.extend(named.map(|field| (message.clone(), field.to_owned())));
    }
    assert!(fields.len() > 800, "{}", fields.len());
    fields
}

#[derive(Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A place in a configuration that sets a field: which configuration, and the way to the message.
struct Place {
    configuration: usize,
    message: Vec<Step>,
}

/// Where each field is set, and the different values that it has.
#[derive(Default)]
struct Places {
    of: BTreeMap<Field, (Vec<Place>, Vec<Value>)>,
}

impl Places {
    /// `name`: of the message that `value` is.
    fn collect(&mut self, configuration: usize, name: &str, value: &Value, at: &mut Vec<Step>) {
        let Value::Object(object) = value else { return };
        let of_any = object.get("@type").and_then(Value::as_str).and_then(|url| url.rsplit('/').next());
        let name = if name == "google.protobuf.Any" { of_any.unwrap_or_default() } else { name };
        if name.ends_with(".TypedStruct") {
            return;
        }
        for (key, value) in object {
            let Some(shape) = mesh_xds::shape_of(name, key) else { continue };
            let (places, values) = self.of.entry((name.to_owned(), key.clone())).or_default();
            places.push(Place { configuration, message: at.clone() });
            if !values.contains(value) {
                values.push(value.clone());
            }
            let Some(of) = mesh_xds::field_type(name, key) else { continue };
            if of.starts_with("google.protobuf.") && of != "google.protobuf.Any" {
                continue;
            }
            at.push(Step::Key(key.clone()));
            match value {
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        at.push(Step::Index(index));
                        self.collect(configuration, of, item, at);
                        at.pop();
                    }
                }
                Value::Object(entries) if shape.map => {
                    for (key, entry) in entries {
                        at.push(Step::Key(key.clone()));
                        self.collect(configuration, of, entry, at);
                        at.pop();
                    }
                }
                value => self.collect(configuration, of, value, at),
            }
            at.pop();
        }
    }
}

fn at<'a>(root: &'a mut Value, steps: &[Step]) -> &'a mut Map<String, Value> {
    let inner = steps.iter().fold(root, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(index) => &mut value[*index],
    });
    inner.as_object_mut().expect("a message")
}

/// Sums the lines that are written, in whatever order: maps print in an order of their own.
struct Lines {
    hasher: ahash::RandomState,
    line: String,
    sum: u64,
    /// The lines themselves, for who asks.
    all: Option<Vec<String>>,
}

impl Write for Lines {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for piece in text.split_inclusive('\n') {
            self.line.push_str(piece);
            if piece.ends_with('\n') {
                self.end();
            }
        }
        Ok(())
    }
}

impl Lines {
    fn end(&mut self) {
        let line = self.line.trim();
        // What changes with every change says nothing, nor does the time of day.
        if !["content_hash:", "identity_hash:", "tv_sec:", "tv_nsec:"].iter().any(|of| line.starts_with(of)) {
            if let Some(all) = &mut self.all {
                all.push(line.to_owned());
            }
            self.sum = self.sum.wrapping_add(self.hasher.hash_one(line));
        }
        self.line.clear();
    }
}

/// What became of a configuration.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Compiled(u64),
    /// Refused by a converter.
    Refused(String),
    /// Not a configuration at all, by the proto files.
    Malformed,
}

/// The log files of all compilations: each set has a thread.
fn log_files() -> &'static LogFiles {
    static ALL: OnceLock<Arc<LogFiles>> = OnceLock::new();
    ALL.get_or_init(|| LogFiles::start(Store::default().filesystem().clone()).expect("a thread"))
}

fn compile(configuration: &Value) -> Outcome {
    match configuration.get("resources") {
        Some(resources) => compile_listeners(resources.as_array().expect("a list")),
        None => compile_bootstrap(configuration),
    }
}

fn compile_bootstrap(configuration: &Value) -> Outcome {
    let text = configuration.to_string();
    let node = Node::parse(&text).expect("JSON");
    if from_node::<Bootstrap>(&node).is_err() {
        return Outcome::Malformed;
    }
    let stats = Store::default();
    match Source::Text(text).load(&stats, log_files()) {
        Err(error) => Outcome::Refused(error.to_string()),
        Ok(mut loaded) => {
            loaded.message = None;
            loaded.ignored.clear();
            // Which files are watched is told by their names alone; that they are read, by what they become.
            loaded.files.files.clear();
            Outcome::Compiled(printed(&loaded, &stats))
        }
    }
}

/// Listeners as a server sends them (the filters that come apart), and layers of the runtime.
fn compile_listeners(resources: &[Value]) -> Outcome {
    let stats = Store::default();
    let mut context = xds::Context {
        stats: &stats,
        log_files: log_files(),
        secrets: Default::default(),
        clusters: None,
        needs: Default::default(),
        ignored: xds::Ignored::default(),
    };
    let (mut all, mut runtime, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for resource in resources {
        let mut resource = resource.clone();
        let kind = resource.as_object_mut().expect("a message").remove("@type");
        let is = |name: &str| kind.as_ref().and_then(Value::as_str).is_some_and(|kind| kind.ends_with(name));
        if is(".RouteConfiguration") {
            let text = resource.to_string();
            let Ok(message) = from_node::<RouteConfiguration>(&Node::parse(&text).expect("JSON")) else {
                return Outcome::Malformed;
            };
            match xds::table("route_config", &message, &mut context) {
                Ok(table) => tables.push((table, context.needs.take())),
                Err(error) => return Outcome::Refused(error.to_string()),
            }
            continue;
        }
        if is(".Runtime") {
            let Ok(message) = from_node::<Runtime>(&Node::parse(&resource.to_string()).expect("JSON")) else {
                return Outcome::Malformed;
            };
            match xds::runtime("runtime", &message, &mut context) {
                Ok(values) => runtime.push((message.name, values)),
                Err(error) => return Outcome::Refused(error.to_string()),
            }
            continue;
        }
        let Ok(message) = from_node::<Listener>(&Node::parse(&resource.to_string()).expect("JSON")) else {
            return Outcome::Malformed;
        };
        match xds::discovered("listener", &message, &mut context) {
            Ok(discovered) => all.push((discovered, context.needs.take())),
            Err(error) => return Outcome::Refused(error.to_string()),
        }
    }
    Outcome::Compiled(printed(&(all, runtime, tables), &stats))
}

fn printed(compiled: &impl Debug, stats: &Store) -> u64 {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let mut lines = Lines { hasher, line: String::new(), sum: 0, all: ALL.take() };
    writeln!(lines, "{compiled:#?}").unwrap();
    for sample in stats.samples(&Query::default()) {
        writeln!(lines, "{}", sample.name).unwrap();
    }
    ALL.set(lines.all);
    lines.sum
}

thread_local! {
    /// Where the next compilation leaves its lines, if it should.
    static ALL: std::cell::Cell<Option<Vec<String>>> = const { std::cell::Cell::new(None) };
}

/// What a configuration prints.
fn lines_of(configuration: &Value) -> BTreeSet<String> {
    ALL.set(Some(Vec::new()));
    compile(configuration);
    ALL.take().into_iter().flatten().collect()
}

/// Other values that a field could have in place of this one.
fn others((message, field): &Field, value: &Value, elsewhere: &[Value]) -> Vec<Value> {
    let mut others = Vec::new();
    let shape = mesh_xds::shape_of(message, field).expect("a field");
    match value {
        Value::Bool(value) => others.push(Value::Bool(!value)),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let of = |number: f64| {
                if number.fract() == 0.0 { Value::from(number as i64) } else { Value::from(number) }
            };
            others.extend([of(number + 1.0), of((number - 1.0).max(0.0)), of(number * 2.0), of(1.0)]);
        }
        Value::String(_) if !shape.values.is_empty() => {
            others.extend(shape.values.iter().map(|name| Value::from(*name)));
        }
        Value::String(text) if mesh_xds::field_type(message, field).is_some() => {
            // A duration, or a number in a wrapper.
            others.extend([Value::from("7.5s"), Value::from("0.3s"), Value::from(format!("1{text}"))]);
        }
        Value::String(text) => {
            let changed =
                [format!("{text}x"), format!("x-{text}"), "127.8.7.6".to_owned(), format!("/x{text}")];
            others.extend(changed.map(Value::from));
        }
        Value::Array(items) if !items.is_empty() => {
            others.push(items[1..].into());
            others.push(items[..items.len() - 1].into());
            let scalars = items.iter().all(|item| item.is_string() || item.is_number());
            if scalars {
                let single = |item: &Value| self::others(&(message.clone(), field.clone()), item, &[]);
                others.extend(single(&items[0]).into_iter().map(|item| Value::Array(vec![item])));
            }
        }
        Value::Array(_) | Value::Object(_) | Value::Null => {}
    }
    others.extend(elsewhere.iter().take(6).cloned());
    others.retain(|other| other != value);
    others
}

/// How a field is changed.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Removed,
    Altered,
    /// Another member of its oneof in its place.
    Swapped,
}

impl Change {
    /// Does a refusal of what came of it show that the field is read? That one must be given does not, and what is
    /// put in its place may be refused for its own sake.
    fn shown_by(self, error: &str) -> bool {
        match self {
            Self::Removed => !error.contains("is required") && !error.contains("needs "),
            Self::Altered => true,
            Self::Swapped => false,
        }
    }
}

/// How the field was seen to count; `None` if it was not.
fn evidence(field: &Field, configurations: &[(String, Value, Outcome)], places: &Places) -> Option<String> {
    let (found, values) = places.of.get(field)?;
    let mut refused = None;
    for place in found.iter().take(PLACES) {
        let (name, configuration, before) = &configurations[place.configuration];
        let mut judge = |how: Change, change: &dyn Fn(&mut Map<String, Value>)| {
            let mut changed = configuration.clone();
            change(at(&mut changed, &place.message));
            match compile(&changed) {
                Outcome::Malformed => false,
                Outcome::Refused(error) => {
                    if how.shown_by(&error) {
                        refused = Some(format!("refused in {name}: {error}"));
                    }
                    false
                }
                after => after != *before,
            }
        };
        if judge(Change::Removed, &|message| drop(message.remove(&field.1))) {
            return Some(format!("without it {name} differs"));
        }
        let mut given = configuration.clone();
        let value = at(&mut given, &place.message)[&field.1].clone();
        for other in others(field, &value, values) {
            if judge(Change::Altered, &|message| drop(message.insert(field.1.clone(), other.clone()))) {
                return Some(format!("with {other} for {value} {name} differs"));
            }
        }
        for sibling in &mesh_xds::shape_of(&field.0, &field.1)?.siblings {
            let key = (field.0.clone(), (*sibling).to_owned());
            for other in places.of.get(&key).into_iter().flat_map(|(_, values)| values).take(3) {
                let swap = |message: &mut Map<String, Value>| {
                    message.remove(&field.1);
                    message.insert(key.1.clone(), other.clone());
                };
                if judge(Change::Swapped, &swap) {
                    return Some(format!("with {sibling} in its place {name} differs"));
                }
            }
        }
        // What is inside of it counts.
        for path in leaves(&value).iter().take(INSIDE) {
            for other in changed(inside(&mut value.clone(), path)) {
                let mut whole = value.clone();
                *inside(&mut whole, path) = other;
                if judge(Change::Altered, &|message| drop(message.insert(field.1.clone(), whole.clone()))) {
                    return Some(format!("with something else in {value} {name} differs"));
                }
            }
        }
        // Nothing else can stand there.
        let honoured_too =
            |sibling: &&str| places.of.contains_key(&(field.0.clone(), (**sibling).to_owned()));
        let siblings = mesh_xds::shape_of(&field.0, &field.1)?.siblings;
        if value == Value::Object(Map::new()) && !siblings.is_empty() && !siblings.iter().any(honoured_too) {
            return Some("the only member of its oneof that is known".to_owned());
        }
        if refused.is_some() {
            break;
        }
    }
    refused
}

/// How many values inside of one are tried.
const INSIDE: usize = 12;

/// The ways to the scalars of a value.
fn leaves(value: &Value) -> Vec<Vec<Step>> {
    let below = |step: Step, value: &Value| {
        leaves(value).into_iter().map(move |mut path| {
            path.insert(0, step.clone());
            path
        })
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| *key != "@type" && *key != "name")
            .flat_map(|(key, value)| below(Step::Key(key.clone()), value))
            .collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(at, item)| below(Step::Index(at), item)).collect()
        }
        _ => vec![Vec::new()],
    }
}

fn inside<'a>(value: &'a mut Value, path: &[Step]) -> &'a mut Value {
    path.iter().fold(value, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(index) => &mut value[*index],
    })
}

/// Other scalars, whatever they are for.
fn changed(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(value) => vec![Value::Bool(!value)],
        Value::Number(number) => vec![Value::from(number.as_f64().unwrap_or_default() as i64 + 1)],
        Value::String(text) => {
            vec![Value::from(format!("{text}x")), Value::from("127.8.7.6"), Value::from("7.5s")]
        }
        _ => Vec::new(),
    }
}

/// Configurations that compile, by name.
fn configurations(folder: &Path) -> Vec<(String, Value)> {
    let mut all = differential::bootstraps(folder).expect("the differential suite");
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/honoured");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(samples).unwrap().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        let text =
            std::fs::read_to_string(&path).unwrap().replace("${folder}", &folder.display().to_string());
        let sample: Value =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), sample));
    }
    // What is small is tried first.
    all.sort_by_key(|(_, configuration)| configuration.to_string().len());
    all
}

#[test]
fn every_field_that_is_called_honoured_is_seen_to_count() {
    let folder = tempfile::tempdir().unwrap();
    // A changed path of a log may be one without a folder.
    std::env::set_current_dir(folder.path()).unwrap();
    let mut all = Vec::new();
    let mut places = Places::default();
    for (index, (name, configuration)) in configurations(folder.path()).into_iter().enumerate() {
        let outcome = compile(&configuration);
        assert!(matches!(outcome, Outcome::Compiled(_)), "{name}: {outcome:?}");
        if outcome != compile(&configuration) {
            let (one, other) = (lines_of(&configuration), lines_of(&configuration));
            let varying: Vec<_> = one.symmetric_difference(&other).take(6).collect();
            panic!("{name} prints differently each time: {varying:?}");
        }
        let of = match configuration.get("resources") {
            Some(_) => "envoy.service.discovery.v3.DiscoveryResponse",
            None => "envoy.config.bootstrap.v3.Bootstrap",
        };
        places.collect(index, of, &configuration, &mut Vec::new());
        all.push((name, configuration, outcome));
    }
    let label = |(message, name): &Field| LABELS.contains(&(message.as_str(), name.as_str()));
    let fields: Vec<Field> = honoured().into_iter().filter(|field| !label(field)).collect();
    let next = AtomicUsize::new(0);
    let without = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(field) = fields.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match evidence(field, &all, &places) {
                        Some(how) if std::env::var_os("MESH_TESTS_VERBOSE").is_some() => {
                            println!("{}.{}: {how}", field.0, field.1);
                        }
                        Some(_) => {}
                        None => {
                            let set =
                                if places.of.contains_key(field) { "has no effect" } else { "is not set" };
                            without.lock().unwrap().push(format!("{}.{} {set}", field.0, field.1));
                        }
                    }
                }
            });
        }
    });
    let mut without = without.into_inner().unwrap();
    without.sort();
    assert!(
        without.is_empty(),
        "{} of {} fields are called honoured, and no configuration shows it; give one in tests/honoured/:\n{}",
        without.len(),
        fields.len(),
        without.join("\n")
    );
}
