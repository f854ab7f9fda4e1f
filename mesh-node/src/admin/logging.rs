//! `/logging`: log levels per part of the process, changed while it runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use super::query::Query;
use super::reply::Reply;

/// The parts that have a level of their own: modules of this crate. The kernel programs' lines come through
/// `capture`.
const LOGGERS: [&str; 16] = [
    "admin",
    "app",
    "capture",
    "cluster",
    "config",
    "drain",
    "filter",
    "http",
    "listener",
    "model",
    "readiness",
    "router",
    "telemetry",
    "upstream",
    "xds",
    "misc",
];

/// Envoy's levels, with what they are here.
const LEVELS: [(&str, &str); 7] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warning", "warn"),
    ("error", "error"),
    ("critical", "error"),
    ("off", "off"),
];

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
    usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
    usage: /logging?level=<level> (change all levels)\n\
    levels: trace debug info warning error critical off \n";

/// The levels in effect, and how new ones take effect.
pub struct Logging {
    levels: Mutex<BTreeMap<&'static str, &'static str>>,
    apply: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logging").field("levels", &self.levels).finish_non_exhaustive()
    }
}

impl Logging {
    /// All parts at `level` (Envoy's name; `info` if it is none). `apply` gets the directives of a `tracing`
    /// filter at each change: `warn,mesh_node::http=debug`.
    pub fn new(level: &str, apply: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let level = level_name(level).unwrap_or("info");
        let levels = LOGGERS.iter().map(|logger| (*logger, level)).collect();
        Self { levels: Mutex::new(levels), apply: Box::new(apply) }
    }

    pub(super) fn page(&self, query: &Query) -> Reply {
        if query.is_empty() {
            return Reply::text(self.list());
        }
        match self.change(query) {
            Ok(()) => Reply::text(self.list()),
            Err(error) => Reply::bad_request(format!("error: {error}\n\n{USAGE}")),
        }
    }

    fn change(&self, query: &Query) -> Result<(), &'static str> {
        let mut changes = Vec::new();
        if let Some(level) = query.get("level") {
            let level = level_name(level).ok_or("unknown logger level")?;
            changes.extend(LOGGERS.iter().map(|logger| (*logger, level)));
        } else if let Some(paths) = query.get("paths") {
            for path in paths.split(',') {
                let (logger, level) =
                    path.split_once(':').ok_or("empty logger name or empty logger level")?;
                changes.push(change(logger, level)?);
            }
        } else {
            for logger in LOGGERS {
                if let Some(level) = query.get(logger) {
                    changes.push(change(logger, level)?);
                }
            }
            if changes.is_empty() {
                return Err("unknown logger name");
            }
        }
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.extend(changes);
        (self.apply)(&directives(&levels));
        Ok(())
    }

    fn list(&self) -> String {
        let mut out = "active loggers:\n".to_owned();
        for (logger, level) in self.levels.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "  {logger}: {level}");
        }
        out.push('\n');
        out
    }
}

fn change(logger: &str, level: &str) -> Result<(&'static str, &'static str), &'static str> {
    let logger = LOGGERS.iter().find(|known| **known == logger).ok_or("unknown logger name")?;
    Ok((logger, level_name(level).ok_or("unknown logger level")?))
}

fn level_name(level: &str) -> Option<&'static str> {
    LEVELS.iter().find(|(name, _)| *name == level).map(|(name, _)| *name)
}

/// `misc` is everything that has no level of its own.
fn directives(levels: &BTreeMap<&'static str, &'static str>) -> String {
    let filter =
        |level: &str| LEVELS.iter().find(|(name, _)| *name == level).map_or("info", |(_, filter)| filter);
    let mut out = filter(levels.get("misc").copied().unwrap_or("info")).to_owned();
    for (logger, level) in levels.iter().filter(|(logger, _)| **logger != "misc") {
        let _ = write!(out, ",mesh_node::{logger}={}", filter(level));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn levels_change_one_by_one_and_all_together() {
        let applied = Arc::new(Mutex::new(String::new()));
        let sink = applied.clone();
        let logging =
            Logging::new("warning", move |directives| *sink.lock().unwrap() = directives.to_owned());
        let post = |query: &str| logging.page(&Query::parse(Some(query)));
        assert!(logging.page(&Query::default()).body.starts_with("active loggers:\n  admin: warning\n"));

        assert!(post("paths=http:debug,router:trace").body.contains("  http: debug\n"));
        assert!(applied.lock().unwrap().contains(",mesh_node::http=debug,"));
        assert!(applied.lock().unwrap().starts_with("warn,mesh_node::admin=warn,"));

        assert!(post("admin=critical").body.contains("  admin: critical\n"));
        assert!(applied.lock().unwrap().contains("mesh_node::admin=error"));

        post("level=off");
        assert!(applied.lock().unwrap().starts_with("off,"));
    }

    #[test]
    fn a_wrong_name_or_level_changes_nothing_and_says_so() {
        let logging = Logging::new("info", |_| panic!("nothing may change"));
        for (query, error) in [
            ("level=loud", "error: unknown logger level\n\nusage: "),
            ("paths=http:debug,nope:info", "error: unknown logger name\n\nusage: "),
            ("nope=info", "error: unknown logger name\n\nusage: "),
        ] {
            let reply = logging.page(&Query::parse(Some(query)));
            assert_eq!(reply.status, 400);
            assert!(reply.body.starts_with(error), "{}", reply.body);
        }
        assert!(logging.list().contains("  http: info\n"));
    }
}
