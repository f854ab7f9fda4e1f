//! The files that the bootstrap names (certificates, keys, trusted authorities): a change of one is a change of
//! the configuration, read again as a whole, so that a bad file leaves the last good configuration serving.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::FilesRead;
use crate::dynamic::Watch;

/// Watches on folders. They are kept while the files stay the same.
#[derive(Debug, Default)]
pub struct WatchedFiles {
    read: FilesRead,
    watches: Vec<Watch>,
}

impl WatchedFiles {
    /// Watches the files that were read at `since` or later. True: one has changed meanwhile and must be read
    /// again.
    pub fn set(&mut self, read: &FilesRead, since: SystemTime) -> bool {
        if *read == self.read {
            return false;
        }
        let mut folders: BTreeMap<PathBuf, Vec<OsString>> = BTreeMap::new();
        for file in &read.files {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let names = folders.entry(folder.unwrap_or(Path::new(".")).to_owned()).or_default();
            names.extend(file.file_name().map(OsString::from));
        }
        let files = folders.into_iter().map(|(folder, names)| (Watch::files(&folder, names), folder));
        let whole = read.folders.iter().map(|folder| (Watch::folder(folder), folder.clone()));
        self.watches.clear();
        for (watch, folder) in files.chain(whole) {
            match watch {
                Ok(watch) => self.watches.push(watch),
                Err(error) => tracing::warn!(
                    "{}: changes of files in it go unnoticed: {error}; raise fs.inotify.max_user_instances",
                    folder.display()
                ),
            }
        }
        self.read = read.clone();
        let changed = |file: &PathBuf| file.metadata().and_then(|m| m.modified()).is_ok_and(|at| at >= since);
        read.files.iter().any(changed)
    }

    /// Returns after a change of one of the files.
    pub async fn changed(&self) {
        if self.watches.is_empty() {
            return std::future::pending().await;
        }
        let all = self.watches.iter().map(|watch| Box::pin(watch.changed()));
        futures_util::future::select_all(all).await;
    }
}
