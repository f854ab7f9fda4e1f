//! What the operator configured: flags, `MESH_*` variables and the settings file; and the Envoy bootstrap.
//!
//! Reads and checks; it starts nothing. Every error names its place and what to do, all of them at once.

pub mod bootstrap;
pub mod cli;
pub mod settings;

pub use bootstrap::{BootstrapError, FilesRead, Loaded};
pub use cli::{Cli, Mode};
pub use settings::{PodsFrom, Settings, SettingsError};
