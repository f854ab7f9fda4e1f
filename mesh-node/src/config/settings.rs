//! mesh-node's own settings: defaults, then the settings file, then `MESH_*` variables, then flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::capture;

/// Everything that can be set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub node: NodeSettings,
    pub capture: capture::Settings,
}

/// What is set of the process itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSettings {
    /// Worker threads; 0 is one per core.
    pub workers: usize,
    /// How long connections may go on after SIGTERM, seconds.
    pub drain_time_s: u64,
    /// A `tracing` filter: a level (Envoy's names too), or `target=level,…`.
    pub log_level: String,
    pub log_format: LogFormat,
    /// Each pod is an xDS node of its own, with its own configuration.
    pub virtual_sidecars: bool,
    /// With `virtual_sidecars` and pods from Kubernetes: each pod's stream of `ads_config` shows a token of the pod's
    /// service account for this audience (`istio-ca`), bound to the pod.
    pub pod_token_audience: Option<String>,
    pub pods_from: PodsFrom,
    /// The name of this node in Kubernetes; also by `NODE_NAME`, as DaemonSets commonly set it.
    pub node_name: Option<String>,
    /// Where the Kubernetes API is. None: `KUBECONFIG`, or the service account of the pod that this is.
    pub kubeconfig: Option<PathBuf>,
}

/// Where the pods of this node come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodsFrom {
    /// `pods_file`, if it is set.
    File,
    /// The API: this node's pods with the label `istio.io/dataplane-mode=mesh`, theirs or their namespace's.
    Kubernetes,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            workers: 0,
            drain_time_s: 30,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            virtual_sidecars: false,
            pod_token_audience: None,
            pods_from: PodsFrom::File,
            node_name: None,
            kubeconfig: None,
        }
    }
}

/// The variable by which DaemonSets commonly tell a pod its node.
const NODE_NAME: &str = "NODE_NAME";

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// All that is wrong with the settings, a line each.
#[derive(Debug)]
pub struct SettingsError(pub Vec<String>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for SettingsError {}

/// Where a value comes from, for errors.
type Source = String;

impl Settings {
    /// Merges the sources. `file` is the settings file, `env` all environment variables, `flags` settings by
    /// their name in the file.
    ///
    /// # Errors
    /// Every unknown name and bad value of every source.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &BTreeMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut values: BTreeMap<String, (Source, Value)> = BTreeMap::new();
        if let Some(path) = file {
            match read_file(path) {
                Ok(entries) => {
                    for (name, value) in entries {
                        values.insert(name, (path.display().to_string(), value));
                    }
                }
                Err(problem) => problems.push(problem),
            }
        }
        let env: BTreeMap<String, String> =
            env.filter(|(name, _)| name.starts_with("MESH_") || name == NODE_NAME).collect();
        for name in names() {
            let variable = format!("MESH_{}", name.to_uppercase());
            if let Some(text) = env.get(&variable) {
                values.insert(name.clone(), (variable, from_text(&name, text)));
            }
            if let Some(text) = flags.get(&name) {
                let flag = format!("--{}", name.replace('_', "-"));
                values.insert(name.clone(), (flag, from_text(&name, text)));
            }
        }
        let (node, capture) = split(values, &mut problems);
        let mut settings = Self {
            node: deserialize(node, &mut problems),
            capture: deserialize::<capture::Settings>(capture, &mut problems),
        };
        if settings.node.node_name.is_none() {
            settings.node.node_name = env.get(NODE_NAME).cloned();
        }
        if settings.node.pods_from == PodsFrom::Kubernetes && settings.capture.pods_file.is_some() {
            problems.push("pods_from: kubernetes takes no pods_file; remove one of the two".to_owned());
        }
        if settings.node.pod_token_audience.is_some()
            && !(settings.node.virtual_sidecars && settings.node.pods_from == PodsFrom::Kubernetes)
        {
            let needs = "pod_token_audience needs virtual_sidecars: true and pods_from: kubernetes";
            problems.push(needs.to_owned());
        }
        problems.extend(settings.capture.problems());
        if problems.is_empty() { Ok(settings) } else { Err(SettingsError(problems)) }
    }

    /// Are pods steered here?
    pub fn steers(&self) -> bool {
        self.capture.pods_file.is_some() || self.node.pods_from == PodsFrom::Kubernetes
    }

    /// The settings in force, as one object.
    pub fn to_json(&self) -> Value {
        let mut all = object(&self.node);
        all.append(&mut object(&self.capture));
        Value::Object(all)
    }

    /// The settings in force, `name=value` each, in the order of their names.
    pub fn effective(&self) -> Vec<String> {
        let all = self.to_json();
        let all = all.as_object().into_iter().flatten();
        let mut lines: Vec<String> = all.map(|(name, value)| format!("{name}={value}")).collect();
        lines.sort();
        lines
    }
}

/// The names of all settings.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = object(&NodeSettings::default()).keys().cloned().collect();
    names.extend(object(&capture::Settings::default()).keys().cloned());
    names
}

fn object(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn read_file(path: &Path) -> Result<Map<String, Value>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| format!("{shown}: {error}; check --settings and the file's permissions"))?;
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_yaml_ng::from_str::<Option<Map<String, Value>>>(&text) {
        Ok(entries) => Ok(entries.unwrap_or_default()),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// A value given as text: what it would be in YAML, a list also as `a,b`.
fn from_text(name: &str, text: &str) -> Value {
    let defaults = [object(&NodeSettings::default()), object(&capture::Settings::default())];
    let kind = defaults.iter().find_map(|d| d.get(name));
    match kind {
        Some(Value::String(_) | Value::Null) => Value::String(text.to_owned()),
        Some(Value::Array(_)) if !text.trim_start().starts_with('[') => {
            text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(scalar).collect()
        }
        _ => scalar(text),
    }
}

fn scalar(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

type Values = BTreeMap<String, (Source, Value)>;

fn split(values: Values, problems: &mut Vec<String>) -> (Values, Values) {
    let of_node = object(&NodeSettings::default());
    let of_capture = object(&capture::Settings::default());
    let (mut node, mut capture) = (Values::new(), Values::new());
    for (name, value) in values {
        if of_node.contains_key(&name) {
            node.insert(name, value);
        } else if of_capture.contains_key(&name) {
            capture.insert(name, value);
        } else {
            problems.push(format!("{}: unknown setting {name:?}{}", value.0, similar(&name)));
        }
    }
    (node, capture)
}

/// Reads value by value, so that one mistake does not hide the next.
fn deserialize<T: DeserializeOwned + Default + Serialize>(values: Values, problems: &mut Vec<String>) -> T {
    let mut good = Map::new();
    for (name, (source, value)) in values {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        match serde_json::from_value::<T>(alone) {
            Ok(_) => {
                good.insert(name, value);
            }
            Err(error) => problems.push(format!("{source}: {name}: {}", in_words(&error))),
        }
    }
    serde_json::from_value(Value::Object(good)).unwrap_or_default()
}

/// A type error without the names of Rust's types.
fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once("expected ") {
        Some((before, "usize" | "u64" | "u32" | "u16")) => format!("{before}expected a whole number"),
        Some((before, "a boolean")) => format!("{before}expected true or false"),
        _ => text,
    }
}

/// A hint for a name with a slip in it.
fn similar(name: &str) -> String {
    let wanted = name.replace('-', "_").to_lowercase();
    let near = names().into_iter().find(|known| {
        *known == wanted
            || known.starts_with(&wanted)
            || wanted.starts_with(known.as_str())
            || distance(known, &wanted) <= 2
    });
    near.map_or_else(
        || "; `mesh-node --help` lists them".to_owned(),
        |known| format!("; did you mean {known:?}?"),
    )
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(of: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        of.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect::<Vec<_>>().into_iter()
    }

    fn flags(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        env(of).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
        let file = file("workers: 1\ndrain_time_s: 2\nmax_connections: 3\n");
        let settings = Settings::load(
            Some(file.path()),
            env(&[("MESH_DRAIN_TIME_S", "20"), ("MESH_MAX_CONNECTIONS", "30"), ("PATH", "/bin")]),
            &flags(&[("max_connections", "300")]),
        )
        .unwrap();
        let (node, capture) = (settings.node, settings.capture);
        assert_eq!((node.workers, node.drain_time_s, capture.max_connections), (1, 20, 300));
    }

    #[test]
    fn lists_and_paths_are_read_from_variables() {
        let variables = [
            ("MESH_EXCLUDE_OUTBOUND_PORTS", "80, 443"),
            ("MESH_PODS_FILE", "/1"),
            ("MESH_FAIL_MODE", "open"),
        ];
        let settings = Settings::load(None, env(&variables), &BTreeMap::new()).unwrap();
        assert_eq!(settings.capture.exclude_outbound_ports, [80, 443]);
        assert_eq!(settings.capture.pods_file.as_deref(), Some(Path::new("/1")));
        assert!(settings.effective().contains(&"fail_mode=\"open\"".to_owned()));
    }

    #[test]
    fn the_node_is_told_by_its_usual_variable_unless_it_is_set_and_pods_come_from_one_place() {
        let load = |variables: &[(&str, &str)]| Settings::load(None, env(variables), &BTreeMap::new());
        let kubernetes = ("MESH_PODS_FROM", "kubernetes");
        let settings = load(&[kubernetes, ("NODE_NAME", "a")]).unwrap();
        assert_eq!(settings.node.node_name.as_deref(), Some("a"));
        assert!(settings.steers());
        let settings = load(&[("NODE_NAME", "a"), ("MESH_NODE_NAME", "b")]).unwrap();
        assert_eq!(settings.node.node_name.as_deref(), Some("b"));
        assert!(!settings.steers());
        let error = load(&[kubernetes, ("MESH_PODS_FILE", "/1")]).unwrap_err();
        assert!(error.to_string().contains("remove one of the two"), "{error}");
        let error = load(&[("MESH_PODS_FROM", "k8s")]).unwrap_err();
        assert!(error.to_string().contains("expected `file` or `kubernetes`"), "{error}");
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_place() {
        let file = file("worker: 1\nfail_mode: ajar\n");
        let shown = file.path().display().to_string();
        let error = Settings::load(
            Some(file.path()),
            env(&[("MESH_DRAIN_TIME_S", "soon")]),
            &flags(&[("instance", "a/b")]),
        )
        .unwrap_err();
        assert_eq!(
            error.0,
            [
                format!("{shown}: unknown setting \"worker\"; did you mean \"workers\"?"),
                "MESH_DRAIN_TIME_S: drain_time_s: invalid type: string \"soon\", expected a whole number"
                    .to_owned(),
                format!("{shown}: fail_mode: unknown variant `ajar`, expected `closed` or `open`"),
                "instance: \"a/b\" is not a name of letters, digits, - and _".to_owned(),
            ]
        );
    }
}
