//! The command line: our commands, a flag for every setting, and the flags that people start Envoy with.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::settings::{Settings, names};

/// Flags of Envoy that mean nothing here. They are accepted, so that start scripts go on working.
const ENVOY_FLAGS: [(&str, bool); 24] = [
    ("base-id", true),
    ("base-id-path", true),
    ("use-dynamic-base-id", false),
    ("restart-epoch", true),
    ("parent-shutdown-time-s", true),
    ("disable-hot-restart", false),
    ("skip-hot-restart-on-no-parent", false),
    ("hot-restart-version", false),
    ("drain-strategy", true),
    ("local-address-ip-version", true),
    ("file-flush-interval-msec", true),
    ("component-log-level", true),
    ("log-path", true),
    ("log-format-escaped", false),
    ("enable-fine-grain-logging", false),
    ("cpuset-threads", false),
    ("service-zone", true),
    ("admin-address-path", true),
    ("bootstrap-version", true),
    ("socket-path", true),
    ("socket-mode", true),
    ("allow-unknown-static-fields", false),
    ("reject-unknown-dynamic-fields", false),
    ("ignore-unknown-dynamic-fields", false),
];

/// What the process is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Run,
    /// Check the configuration and exit.
    Validate,
    /// Remove everything of an instance from the host and its pods.
    Cleanup,
    /// Say what an instance does for each pod.
    Status,
}

/// The command line, read.
#[derive(Debug, Clone)]
pub struct Cli {
    pub mode: Mode,
    pub bootstrap: Option<PathBuf>,
    /// A bootstrap as text; merged over the file's in Envoy, the only one here.
    pub config_yaml: Option<String>,
    pub settings: Option<PathBuf>,
    pub service_node: Option<String>,
    pub service_cluster: Option<String>,
    /// Do not end after a cleanup before being told to.
    pub stay: bool,
    /// Settings given as flags, by their name in the settings file.
    pub flags: BTreeMap<String, String>,
    /// Flags that were accepted and do nothing.
    pub ignored: Vec<String>,
}

impl Cli {
    /// Reads the command line; prints help, version or an error and ends the process when that is due.
    pub fn parse() -> Self {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Self::try_parse(arguments).unwrap_or_else(|error| error.exit())
    }

    /// The same from given arguments.
    ///
    /// # Errors
    /// What clap says of them.
    pub fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let mut unknown = Vec::new();
        loop {
            match command().try_get_matches_from(&args) {
                Ok(matches) => {
                    let mut cli = Self::of(matches);
                    cli.ignored.append(&mut unknown);
                    return Ok(cli);
                }
                Err(error) => match unknown_flag(&error) {
                    Some(flag) if leave_out(&mut args, &flag) => unknown.push(flag),
                    _ => return Err(error),
                },
            }
        }
    }

    fn of(matches: ArgMatches) -> Self {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let mode = match (matches.subcommand_name(), text("mode").as_deref()) {
            (Some("cleanup"), _) => Mode::Cleanup,
            (Some("status"), _) => Mode::Status,
            (Some("validate"), _) | (_, Some("validate")) => Mode::Validate,
            _ => Mode::Run,
        };
        let flags = names().into_iter().filter_map(|name| Some((name.clone(), text(&name)?))).collect();
        let ignored = ENVOY_FLAGS
            .iter()
            .filter(|(flag, _)| matches.value_source(flag) == Some(clap::parser::ValueSource::CommandLine))
            .map(|(flag, _)| format!("--{flag}"))
            .collect();
        Self {
            mode,
            bootstrap: matches.get_one::<PathBuf>("bootstrap").cloned(),
            config_yaml: text("config-yaml"),
            settings: matches.get_one::<PathBuf>("settings").cloned(),
            service_node: text("service-node"),
            service_cluster: text("service-cluster"),
            stay: matches.subcommand_matches("cleanup").is_some_and(|cleanup| cleanup.get_flag("stay")),
            flags,
            ignored,
        }
    }
}

/// A flag that nobody knows, and that is not one of ours mistyped: start scripts of Envoy may have any.
fn unknown_flag(error: &clap::Error) -> Option<String> {
    let mistyped = error.get(ContextKind::SuggestedArg).is_some();
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument && !mistyped => {
            Some(flag.split('=').next().unwrap_or(flag).to_owned()).filter(|flag| flag.starts_with("--"))
        }
        _ => None,
    }
}

/// Takes the flag out, and what follows it if that may be its value.
fn leave_out(args: &mut Vec<OsString>, flag: &str) -> bool {
    let of_flag = |arg: &OsString| arg.to_string_lossy().split('=').next() == Some(flag);
    let Some(at) = args.iter().position(of_flag) else { return false };
    let whole = args.remove(at).to_string_lossy().contains('=');
    let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
    if !whole && args.get(at).is_some_and(is_value) {
        args.remove(at);
    }
    true
}

fn command() -> Command {
    let path = clap::value_parser!(PathBuf);
    let mut command = Command::new("mesh-node")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Steers the pods of a node to itself and proxies them, configured as Envoy is")
        .after_help("Every setting can be given in the settings file, as MESH_NAME, or as a flag; flags win.")
        .arg(
            Arg::new("bootstrap")
                .long("bootstrap")
                .short('c')
                .alias("config-path")
                .global(true)
                .value_name("FILE")
                .env("MESH_BOOTSTRAP")
                .value_parser(path.clone())
                .help("Envoy bootstrap, YAML or JSON; watched while running"),
        )
        .arg(
            Arg::new("config-yaml")
                .long("config-yaml")
                .global(true)
                .value_name("YAML")
                .conflicts_with("bootstrap")
                .help("The bootstrap itself"),
        )
        .arg(
            Arg::new("settings")
                .long("settings")
                .global(true)
                .value_name("FILE")
                .env("MESH_SETTINGS")
                .value_parser(path)
                .help("mesh-node's own settings, YAML"),
        )
        .arg(
            Arg::new("mode")
                .long("mode")
                .value_name("MODE")
                .value_parser(["serve", "validate", "init_only"])
                .help("`validate` checks the configuration and exits, as in Envoy"),
        )
        .arg(
            Arg::new("service-node")
                .long("service-node")
                .global(true)
                .value_name("ID")
                .help("Overrides node.id"),
        )
        .arg(
            Arg::new("service-cluster")
                .long("service-cluster")
                .global(true)
                .value_name("NAME")
                .help("Overrides node.cluster"),
        )
        .subcommand(Command::new("run").about("Run the proxy (the default)"))
        .subcommand(Command::new("validate").about("Check the configuration and exit"))
        .subcommand(
            Command::new("cleanup").about("Remove everything of an instance from the host and its pods").arg(
                Arg::new("stay")
                    .long("stay")
                    .action(ArgAction::SetTrue)
                    .help("Afterwards do nothing until SIGTERM, as pods of a DaemonSet must"),
            ),
        )
        .subcommand(
            Command::new("status")
                .about("Say for every pod what is steered, what goes past TCP and why the rest does not"),
        );
    let defaults = Settings::default().to_json();
    for name in names() {
        let mut arg = Arg::new(name.clone())
            .long(name.replace('_', "-"))
            .global(true)
            .value_name("VALUE")
            .help_heading("Settings");
        arg = match name.as_str() {
            "workers" => arg.alias("concurrency"),
            "log_level" => arg.short('l'),
            _ => arg,
        };
        let default = defaults.get(&name).map(shown).filter(|text| !text.is_empty());
        let default = default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
        command = command.arg(arg.help(format!("{}{default}", help(&name))));
    }
    for (flag, takes_value) in ENVOY_FLAGS {
        let action = if takes_value { ArgAction::Set } else { ArgAction::SetTrue };
        command = command.arg(Arg::new(flag).long(flag).global(true).action(action).hide(true));
    }
    command
}

/// A default as it would be given.
fn shown(value: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Null, String as Text};
    match value {
        Null => String::new(),
        Array(items) if items.is_empty() => String::new(),
        Text(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One line on a setting.
fn help(name: &str) -> &'static str {
    match name {
        "workers" => "Worker threads; 0 is one per core (Envoy: --concurrency)",
        "drain_time_s" => "Seconds that connections may go on after SIGTERM",
        "max_connections" => "Connections one pod may have open through the proxy; 0 is no limit",
        "max_buffered_bytes" => "Bytes that may be held for one pod; 0 is no limit",
        "log_level" => "trace, debug, info, warn, error, off, or target=level,…",
        "log_format" => "text or json",
        "virtual_sidecars" => "Each pod is an xDS node of its own, as under Istio: true or false",
        "pod_token_audience" => {
            "Audience of the token that each pod's xDS stream shows, such as istio-ca; without it none"
        }
        "pods_from" => "file (pods_file) or kubernetes: where the pods of this node come from",
        "node_name" => "Name of this node in Kubernetes; also by NODE_NAME",
        "kubeconfig" => "Where the Kubernetes API is; without it KUBECONFIG or the pod's service account",
        "instance" => "Name of this mesh-node on the host; its folder in bpffs",
        "pods_file" => "Watched file that lists the pods of this node; without it nothing is steered",
        "bpf_object" => "The compiled kernel programs",
        "bpffs" => "Where bpffs is mounted",
        "cgroup_root" => "The cgroup2 folder that holds every pod and the host's services",
        "kubepods_cgroup" => "The cgroup that all pods are below",
        "state_dir" => "Where is recorded what cleanup has to put back",
        "fail_mode" => "closed or open: what connections meet while no proxy runs",
        "unsteered" => "refuse or pass: a new connection that leaves a pod around the proxy",
        "older_connections" => "refuse or pass: connections older than the pod's enrolment",
        "hold_new_pods_ms" => {
            "Milliseconds that connections of a pod not known yet are held at most; 0 is not at all"
        }
        "connect_hook" => "Steer by the connect hook: true or false",
        "tc_steering" => "Steer by TC what the connect hook does not reach: true or false",
        "tc_guard" => "Judge on the host side what leaves a pod: true or false",
        "acceleration" => "Let bytes between pods and proxy go past TCP: true or false",
        "acceleration_unseen_splice" => {
            "Also where the kernel does not show which pods splice from sockets, if none does: true or false"
        }
        "in_memory" => "Hand connections between two pods of this node over in memory: true or false",
        "hand_off" => "Let bytes between two applications of this node skip the proxy: true or false",
        "outbound_port" => "Port of the outbound listener inside each pod",
        "inbound_port" => "Port of the inbound listener inside each pod",
        "mark" => "Mark of steered sockets; the next number marks those towards applications",
        "mark_mask" => "Bits of a mark that are ours",
        "route_table" => "Number of the routing table inside each pod",
        "rule_priority" => "Priority of the routing rules inside each pod",
        "heartbeat_timeout_ms" => "The proxy counts as away without a sign of life for this long",
        "exclude_outbound_ports" => "Destination ports that are not steered",
        "exclude_inbound_ports" => "Ports of pods that are not steered",
        "exclude_outbound_cidrs" => "Destinations that are not steered",
        "exclude_inbound_cidrs" => "Sources that are not steered",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_start_script_for_envoy_works_unchanged() {
        let line = "mesh-node -c /etc/envoy.yaml --concurrency 2 -l warning --drain-time-s 5 --service-node n1 \
                    --disable-hot-restart --restart-epoch 0 --log-format json";
        let cli = parse(line).unwrap();
        assert_eq!(cli.mode, Mode::Run);
        assert_eq!(cli.bootstrap, Some(PathBuf::from("/etc/envoy.yaml")));
        assert_eq!(cli.flags["workers"], "2");
        assert_eq!(cli.flags["drain_time_s"], "5");
        assert_eq!(cli.flags["log_level"], "warning");
        assert_eq!(cli.service_node.as_deref(), Some("n1"));
        assert_eq!(cli.ignored, ["--restart-epoch", "--disable-hot-restart"]);
    }

    #[test]
    fn a_flag_that_nobody_knows_is_left_out_with_its_value_and_told_of() {
        let cli = parse("mesh-node --frobnicate x -c a.yaml --levitate --wobble=3 --mode validate").unwrap();
        assert_eq!((cli.mode, cli.bootstrap), (Mode::Validate, Some(PathBuf::from("a.yaml"))));
        assert_eq!(cli.ignored, ["--frobnicate", "--levitate", "--wobble"]);
    }

    #[test]
    fn flags_stand_before_or_behind_the_command_and_a_slip_is_an_error() {
        assert_eq!(parse("mesh-node --settings a cleanup").unwrap().mode, Mode::Cleanup);
        assert_eq!(parse("mesh-node status --instance a").unwrap().mode, Mode::Status);
        assert_eq!(parse("mesh-node cleanup --settings a").unwrap().settings, Some(PathBuf::from("a")));
        assert_eq!(parse("mesh-node --mode validate -c x").unwrap().mode, Mode::Validate);
        assert!(parse("mesh-node cleanup --stay").unwrap().stay);
        assert!(!parse("mesh-node cleanup").unwrap().stay);
        assert!(parse("mesh-node --fail-mod open").is_err());
    }

    #[test]
    fn every_setting_has_a_line_of_help() {
        for name in names() {
            assert!(!help(&name).is_empty(), "{name}");
        }
        command().debug_assert();
    }
}
