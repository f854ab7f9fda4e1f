//! Why a resource cannot be honoured.

use std::fmt;
use std::io;

/// A resource is refused; the last good one stays. Each is one line that names the field and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum XdsError {
    /// The field changes behaviour in a way that this proxy does not have.
    #[error("{path}: this field is not supported by mesh-node; remove it")]
    Unsupported { path: String },
    /// A filter, transport socket, access logger or other extension that this proxy does not have.
    #[error("{path}: extension {name} is not supported by mesh-node; remove it")]
    Extension { path: String, name: String },
    /// A value that has no meaning, or none here.
    #[error("{path}: {message}")]
    Invalid { path: String, message: String },
    /// A route or `tcp_proxy` names a cluster that does not exist.
    #[error("{path}: unknown cluster {cluster:?}; add it to static_resources.clusters")]
    MissingCluster { path: String, cluster: String },
    /// A file that a data source names.
    #[error("{path}: reading {file}: {source}; check the path and its permissions")]
    File {
        path: String,
        file: String,
        #[source]
        source: io::Error,
    },
}

impl XdsError {
    /// The full path of the field.
    pub fn path(&self) -> &str {
        match self {
            Self::Unsupported { path }
            | Self::Extension { path, .. }
            | Self::Invalid { path, .. }
            | Self::MissingCluster { path, .. }
            | Self::File { path, .. } => path,
        }
    }
}

/// Where a converter is: a chain on the stack, written out only for an error.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The path of the resource itself.
    pub(super) fn root(path: &'a str) -> Self {
        Self { parent: None, step: Step::Field(path) }
    }

    pub(super) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    pub(super) fn index(&self, index: usize) -> At<'_> {
        At { parent: Some(self), step: Step::Index(index) }
    }

    pub(super) fn invalid(&self, message: impl Into<String>) -> XdsError {
        XdsError::Invalid { path: self.to_string(), message: message.into() }
    }

    pub(super) fn unsupported(&self) -> XdsError {
        XdsError::Unsupported { path: self.to_string() }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}
