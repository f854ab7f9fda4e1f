//! Resources from files (`path_config_source`): a `DiscoveryResponse` in YAML, JSON or binary form.

use std::path::Path;

use prost::Message;

use super::resource::{body_of, name_in};
use super::{Received, Rejected, Resource, ResourceType};
use crate::Node;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;

/// Why a file gives no resources. One line for each mistake.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}; check the path and its permissions")]
    Read { path: String, source: std::io::Error },
    #[error("{path}: {0}", mistakes.join("; "))]
    Content { path: String, mistakes: Vec<String> },
}

/// Reads what `path` holds of `kind`. By its ending the file is binary (`.pb`), else YAML or JSON.
///
/// # Errors
/// When the file cannot be read as a whole; a single bad resource is in `unreadable`.
pub fn read_file(path: &Path, kind: ResourceType) -> Result<Received, FileError> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| FileError::Read { path: shown.clone(), source })?;
    let bad = |mistakes| FileError::Content { path: shown.clone(), mistakes };
    let response = if path.extension().is_some_and(|ending| ending == "pb") {
        DiscoveryResponse::decode(bytes.as_slice()).map_err(|error| bad(vec![error.to_string()]))?
    } else {
        let text = String::from_utf8(bytes).map_err(|_| bad(vec!["is not UTF-8 text".to_owned()]))?;
        let tree = Node::parse(&text).map_err(|problem| bad(vec![problem.to_string()]))?;
        crate::from_node(&tree).map_err(|problems| bad(problems.iter().map(ToString::to_string).collect()))?
    };
    let mut received = Received {
        kind,
        version: response.version_info,
        nonce: String::new(),
        resources: Vec::new(),
        removed: Vec::new(),
        unreadable: Vec::new(),
        heartbeats: Vec::new(),
    };
    for (index, any) in response.resources.into_iter().enumerate() {
        let named = body_of(kind, any).and_then(|body| Ok((name_in(kind, &body)?, body)));
        match named {
            Ok((name, body)) => {
                received.resources.push(Resource { name, version: String::new(), body, ttl: None });
            }
            Err(reason) => received.unreadable.push(Rejected { name: format!("resources[{index}]"), reason }),
        }
    }
    Ok(received)
}
