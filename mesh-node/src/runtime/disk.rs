//! Values in files: a folder for each part of a key, a file for its last (`RuntimeLayer.DiskLayer`).

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::value::{Value, Values};

/// Deeper folders are not looked into, as in Envoy.
const DEEPEST: usize = 16;

/// `RuntimeLayer.DiskLayer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayer {
    /// `symlink_root`: a link that is switched when there are other values.
    pub root: PathBuf,
    pub subdirectory: PathBuf,
    pub append_service_cluster: bool,
}

impl DiskLayer {
    /// What is there now; nothing if the folder is not there.
    ///
    /// # Errors
    /// A file or folder that cannot be read.
    pub(super) fn read(&self, cluster: &str) -> io::Result<Values> {
        let mut folder = self.root.join(&self.subdirectory);
        if self.append_service_cluster {
            folder.push(cluster);
        }
        let mut values = Values::new();
        if folder.is_dir() {
            walk(&folder, "", DEEPEST, &mut values)?;
        }
        Ok(values)
    }

    /// The folder in which the link is switched.
    pub(super) fn watched(&self) -> PathBuf {
        match self.root.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        }
    }
}

fn walk(folder: &Path, prefix: &str, depth: usize, values: &mut Values) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!("{}: more than {DEEPEST} folders deep", folder.display())));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let key = if prefix.is_empty() { name.into_owned() } else { format!("{prefix}.{name}") };
        let path = entry.path();
        // Links are followed.
        let kind = fs::metadata(&path)?;
        if kind.is_dir() {
            walk(&path, &key, depth - 1, values)?;
        } else if kind.is_file() {
            let text = fs::read_to_string(&path)?;
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            values.insert(key, Value::of_text(lines.join("\n").trim_end()));
        }
    }
    Ok(())
}
