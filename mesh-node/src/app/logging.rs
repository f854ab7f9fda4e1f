//! The process's own log: level and format, and the level changed while running (`/logging`).

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::settings::{LogFormat, NodeSettings};

/// Changes the level of the running process.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

/// Starts logging to standard error. A level that does not read is `info`, and is said.
pub fn start(settings: &NodeSettings) -> Level {
    let (filter, bad) = match filter(&settings.log_level) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first log.
    let started = match settings.log_format {
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
        }
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
    if let (Some(error), Ok(())) = (bad, started) {
        tracing::warn!("log_level: {error}; using info");
    }
    Level(handle)
}

impl Level {
    /// Sets the filter.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = filter(text)?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// Envoy's names for levels are taken too.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let text = match text {
        "warning" => "warn",
        "critical" => "error",
        other => other,
    };
    EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))
}
