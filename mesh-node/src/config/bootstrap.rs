//! Reads an Envoy bootstrap and compiles its static resources.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::core::v3::Node as NodeProto;
use mesh_xds::{Content, Node, Problem, Stored};

use super::Cli;
use crate::model::cluster::Cluster;
use crate::model::listener::Listener;
use crate::model::source::{Dynamic, Need};
use crate::runtime::Layer;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::{StatsShape, Store};
use crate::xds;

/// Where the bootstrap comes from.
#[derive(Debug, Clone)]
pub enum Source {
    File(PathBuf),
    /// `--config-yaml`.
    Text(String),
}

/// A bootstrap, read and compiled.
#[derive(Debug)]
pub struct Loaded {
    /// Each with the resources that it names and that come apart from it.
    pub listeners: Vec<(Arc<Listener>, Vec<Need>)>,
    pub clusters: Vec<(Arc<Cluster>, Vec<Need>)>,
    /// `dynamic_resources`.
    pub dynamic: Dynamic,
    /// `layered_runtime`
    pub runtime: Vec<Layer>,
    /// `stats_config`
    pub stats: Option<Arc<StatsShape>>,
    /// Who this process is to xDS servers.
    pub node: NodeProto,
    /// `admin.address`; without it there is no admin server.
    pub admin: Option<SocketAddr>,
    /// The message itself, for `/config_dump`.
    pub message: Option<Stored>,
    /// Files that were read beside the bootstrap.
    pub files: FilesRead,
    /// Fields that are set and have no effect here, each with one place and how often it is set.
    pub ignored: Vec<String>,
}

/// What a bootstrap names besides itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesRead {
    /// `DataSource.filename`
    pub files: BTreeSet<PathBuf>,
    /// `watched_directory`: any change in it may be one of a file.
    pub folders: BTreeSet<PathBuf>,
}

impl FilesRead {
    fn of(tree: &Node) -> Self {
        let mut found = Self::default();
        found.collect(tree);
        found
    }

    fn collect(&mut self, node: &Node) {
        let text = |node: &Node| match &node.content {
            Content::Scalar(text, _) if !text.is_empty() => Some(PathBuf::from(text)),
            _ => None,
        };
        match &node.content {
            Content::List(items) => items.iter().for_each(|item| self.collect(item)),
            Content::Map(entries) => {
                for (key, value) in entries {
                    match key.as_str() {
                        "filename" => self.files.extend(text(value)),
                        "watched_directory" | "watchedDirectory" => {
                            self.folders.extend(value.get("path").and_then(text));
                        }
                        _ => self.collect(value),
                    }
                }
            }
            Content::Null | Content::Scalar(..) => {}
        }
    }
}

/// What is wrong with a bootstrap: a line for each mistake, each with its place.
#[derive(Debug)]
pub struct BootstrapError(pub Vec<String>);

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for BootstrapError {}

impl Source {
    /// The source that the command line names.
    ///
    /// # Errors
    /// When it names none.
    pub fn of(cli: &Cli) -> Result<Self, BootstrapError> {
        match (&cli.bootstrap, &cli.config_yaml) {
            (_, Some(text)) => Ok(Self::Text(text.clone())),
            (Some(path), None) => Ok(Self::File(path.clone())),
            (None, None) => Err(BootstrapError(vec![
                "no configuration: give an Envoy bootstrap with -c FILE, or --config-yaml TEXT".to_owned(),
            ])),
        }
    }

    /// The file to watch.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text(_) => None,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Text(_) => "--config-yaml".to_owned(),
        }
    }

    /// Reads and compiles.
    ///
    /// # Errors
    /// Every mistake at once; nothing is kept of a bootstrap that has one.
    pub fn load(&self, stats: &Store, log_files: &LogFiles) -> Result<Loaded, BootstrapError> {
        let name = self.name();
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::File(path) => fs::read_to_string(path).map_err(|error| {
                BootstrapError(vec![format!("{name}: {error}; check the path and its permissions")])
            })?,
        };
        compile(&name, &text, stats, log_files)
    }
}

fn compile(name: &str, text: &str, stats: &Store, log_files: &LogFiles) -> Result<Loaded, BootstrapError> {
    if text.trim().is_empty() {
        // Nothing to serve is more likely a file half written than what somebody wants.
        return Err(BootstrapError(vec![format!("{name}: the file is empty; write a bootstrap into it")]));
    }
    let tree = Node::parse(text).map_err(|problem| BootstrapError(vec![line(name, &problem)]))?;
    let message: Bootstrap = mesh_xds::from_node(&tree)
        .map_err(|problems| BootstrapError(problems.iter().map(|p| line(name, p)).collect()))?;
    let mut mistakes = Vec::new();
    let mut refuse = |error: xds::XdsError| {
        let at = tree.line_of(error.path());
        mistakes.push(if at == 0 { format!("{name}: {error}") } else { format!("{name}:{at}: {error}") });
    };
    let resources = message.static_resources.clone().unwrap_or_default();
    let mut context = xds::Context {
        stats,
        log_files,
        secrets: resources.secrets.iter().map(|s| (s.name.clone(), s.clone())).collect(),
        // Clusters that come by CDS are not known yet.
        clusters: match message.dynamic_resources.as_ref().and_then(|d| d.cds_config.as_ref()) {
            Some(_) => None,
            None => Some(resources.clusters.iter().map(|c| c.name.clone()).collect()),
        },
        needs: RefCell::default(),
        ignored: xds::Ignored::default(),
    };
    let bootstrap = xds::bootstrap(&message, &mut context).map_err(&mut refuse).unwrap_or_default();
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut unique =
        |path: &str, kind: &str, name: &str| match seen.insert(format!("{kind} {name}"), path.to_owned()) {
            Some(first) => Err(xds::XdsError::Invalid {
                path: path.to_owned(),
                message: format!("{kind} {name:?} is already at {first}; change one"),
            }),
            None => Ok(()),
        };
    for (index, proto) in resources.secrets.iter().enumerate() {
        let path = format!("static_resources.secrets[{index}]");
        if let Err(error) = xds::secret(&path, proto, &mut context) {
            refuse(error);
        }
    }
    let mut clusters = Vec::with_capacity(resources.clusters.len());
    for (index, proto) in resources.clusters.iter().enumerate() {
        let path = format!("static_resources.clusters[{index}]");
        let compiled =
            unique(&path, "cluster", &proto.name).and_then(|()| xds::cluster(&path, proto, &mut context));
        match compiled {
            Ok(cluster) => clusters.push((Arc::new(cluster), context.needs.take())),
            Err(error) => refuse(error),
        }
    }
    let mut listeners = Vec::with_capacity(resources.listeners.len());
    for (index, proto) in resources.listeners.iter().enumerate() {
        let path = format!("static_resources.listeners[{index}]");
        let compiled = xds::listener(&path, proto, &mut context)
            .and_then(|l| unique(&path, "listener", &l.name).map(|()| l))
            // As in Envoy: which of two at one address would serve is undefined.
            .and_then(|l| unique(&path, "address", &l.address.to_string()).map(|()| l));
        match compiled {
            Ok(listener) => listeners.push((Arc::new(listener), context.needs.take())),
            Err(error) => refuse(error),
        }
    }
    let ignored = summary(&context.ignored.paths);
    if !mistakes.is_empty() {
        return Err(BootstrapError(mistakes));
    }
    let xds::Bootstrap { admin, dynamic, runtime, stats } = bootstrap;
    let stats = stats.map(Arc::new);
    let node = message.node.clone().unwrap_or_default();
    let (message, mut files) = (Stored::new(&message), FilesRead::of(&tree));
    // The links of disk layers are switched there.
    files.folders.extend(runtime.iter().filter_map(Layer::watched));
    Ok(Loaded { listeners, clusters, dynamic, runtime, stats, node, admin, message, files, ignored })
}

/// One line for each field, however many resources set it.
fn summary(paths: &[String]) -> Vec<String> {
    let mut fields: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    for path in paths {
        let kind = path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
        fields.entry(kind).or_insert((path, 0)).1 += 1;
    }
    fields
        .into_values()
        .map(|(path, count)| match count {
            1 => path.to_owned(),
            _ => format!("{path} (and {} more of its kind)", count - 1),
        })
        .collect()
}

fn line(name: &str, problem: &Problem) -> String {
    match problem.line {
        0 => format!("{name}: {problem}"),
        line => format!("{name}:{line}: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Loaded, Vec<String>> {
        let stats = Store::default();
        let log_files = LogFiles::start(stats.filesystem().clone()).unwrap();
        compile("f.yaml", text, &stats, &log_files).map_err(|error| error.0)
    }

    const TCP: &str = "{name: tcp, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}";

    #[test]
    fn every_mistake_of_a_bootstrap_is_told_with_file_line_and_remedy() {
        let text = format!(
            "admin:
  address: {{socket_address: {{address: nowhere, port_value: 1}}}}
static_resources:
  clusters:
  - name: b
    outlier_detection: {{}}
    health_checks:
    - {{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, custom_health_check: {{name: redis}}}}
  listeners:
  - name: one
    address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}
    filter_chains:
    - filters:
      - {TCP}
"
        );
        assert_eq!(
            load(&text).unwrap_err(),
            [
                "f.yaml:2: admin.address.socket_address.address: must be an IP address, not \"nowhere\"",
                "f.yaml:8: static_resources.clusters[0].health_checks[0].custom_health_check: this field is not \
                 supported by mesh-node; remove it",
                "f.yaml:14: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.cluster: \
                 unknown cluster \"a\"; add it to static_resources.clusters",
            ]
        );
    }

    #[test]
    fn a_slip_in_a_name_and_a_slip_in_the_syntax_are_found_by_their_line() {
        let problems = load("static_resources:\n  cluster: []\n").unwrap_err();
        let expected = "f.yaml:2: static_resources.cluster: no such field in \
            envoy.config.bootstrap.v3.Bootstrap.StaticResources; did you mean clusters?";
        assert_eq!(problems, [expected]);
        let problems = load("static_resources:\n  clusters: [\n").unwrap_err();
        assert!(problems[0].starts_with("f.yaml:3: not valid YAML"), "{problems:?}");
    }

    #[test]
    fn names_and_addresses_are_given_once() {
        let listener = |name: &str| {
            format!(
                "{{name: {name}, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, \
                 filter_chains: [{{filters: [{TCP}]}}]}}"
            )
        };
        let text = format!(
            "{{static_resources: {{clusters: [{{name: a}}, {{name: a}}], listeners: [{}, {}]}}}}",
            listener("one"),
            listener("two")
        );
        assert_eq!(
            load(&text).unwrap_err(),
            [
                "f.yaml:1: static_resources.clusters[1]: cluster \"a\" is already at \
                 static_resources.clusters[0]; change one",
                "f.yaml:1: static_resources.listeners[1]: address \"0.0.0.0:80\" is already at \
                 static_resources.listeners[0]; change one",
            ]
        );
    }

    #[test]
    fn a_secret_that_asks_for_what_is_not_built_is_refused_not_half_obeyed() {
        let text = "{static_resources: {secrets: [{name: s, validation_context: {custom_validator_config: {name: x, \
                    typed_config: {'@type': type.googleapis.com/google.protobuf.Struct}}}}]}}";
        let problems = load(text).unwrap_err();
        let expected = "static_resources.secrets[0].validation_context.custom_validator_config: this field is not \
                        supported";
        assert!(problems[0].contains(expected), "{problems:?}");
    }

    #[test]
    fn the_files_and_folders_to_watch_are_found_wherever_they_stand() {
        let text = "{a: [{tls_certificates: [{certificate_chain: {filename: /c}, watched_directory: {path: /d}}]}, \
                    {trusted_ca: {filename: /ca, watchedDirectory: {path: /e}}}], filename: ''}";
        let found = FilesRead::of(&Node::parse(text).unwrap());
        assert_eq!(found.files, ["/c", "/ca"].map(PathBuf::from).into());
        assert_eq!(found.folders, ["/d", "/e"].map(PathBuf::from).into());
    }

    #[test]
    fn what_has_no_effect_is_told_once_for_all_resources() {
        let text = "{static_resources: {clusters: [{name: a, track_cluster_stats: {}}, {name: b, track_cluster_stats: {}}]}, \
                    node_context_params: [x]}";
        let loaded = load(text).unwrap();
        assert_eq!(
            loaded.ignored,
            [
                "node_context_params[0]",
                "static_resources.clusters[0].track_cluster_stats (and 1 more of its kind)"
            ]
        );
        assert_eq!(loaded.message.unwrap().to_json()["static_resources"]["clusters"][1]["name"], "b");
    }

    #[test]
    fn no_edit_of_a_bootstrap_however_broken_ends_the_process() {
        let good = include_str!("../../../deploy/bootstrap.yaml");
        load(good).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let mut refused = 0;
        for _ in 0..400 {
            let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..lines.len());
                match random.u8(..5) {
                    0 => drop(lines.remove(at)),
                    1 => lines.insert(at, lines[random.usize(..lines.len())].clone()),
                    2 => lines[at] = lines[at].replace(['{', '"'], ""),
                    3 => lines[at] = lines[at].replace(|c: char| c.is_ascii_digit(), "-9"),
                    _ => {
                        let cut = random.usize(..=lines[at].chars().count());
                        lines[at] = lines[at].chars().take(cut).collect();
                    }
                }
            }
            refused += usize::from(load(&lines.join("\n")).is_err());
        }
        assert!(refused > 100, "only {refused} of 400 broken files were refused");
    }
}
