//! Tells when a file has changed, however it was changed: written in place, renamed over, or reached through
//! symbolic links that were switched (as Kubernetes does with ConfigMaps).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// A watched file. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches `file`, which may come and go; its folder must exist.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn new(file: &Path) -> notify::Result<Self> {
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Self::of(&folder, Some(file.file_name().map(OsStr::to_owned).into_iter().collect()))
    }

    /// Watches the files of these names in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn files(folder: &Path, names: Vec<OsString>) -> notify::Result<Self> {
        Self::of(folder, Some(names))
    }

    /// Watches everything in `folder` (`watched_directory`).
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn folder(folder: &Path) -> notify::Result<Self> {
        Self::of(folder, None)
    }

    fn of(folder: &Path, names: Option<Vec<OsString>>) -> notify::Result<Self> {
        let changed = Arc::new(Notify::new());
        let told = changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // `..data` is the link that Kubernetes switches.
            let ours = |path: &PathBuf| {
                let (Some(names), Some(of)) = (&names, path.file_name()) else { return true };
                of == OsStr::new("..data") || names.iter().any(|name| name == of)
            };
            match event {
                Ok(event) if !event.paths.iter().any(ours) || !is_complete(&event) => {}
                _ => told.notify_one(),
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self { changed, _watcher: watcher })
    }

    /// Returns after a change since the last call. Several changes may be one.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Is the file whole after this event? A writer's first events come while it is still half written.
fn is_complete(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_)) => {
            true
        }
        EventKind::Create(_) => event.paths.iter().any(|path| path.is_symlink()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    async fn told(watch: &Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn edits_renames_and_switched_links_are_all_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bootstrap.yaml");
        fs::create_dir(folder.path().join("v1")).unwrap();
        let watch = Watch::new(&file).unwrap();
        fs::write(&file, "a").unwrap();
        assert!(told(&watch).await, "a file that appears");
        let other = folder.path().join("new");
        fs::write(&other, "b").unwrap();
        fs::rename(&other, &file).unwrap();
        assert!(told(&watch).await, "a rename over it");
        symlink("v1", folder.path().join("..data.new")).unwrap();
        fs::rename(folder.path().join("..data.new"), folder.path().join("..data")).unwrap();
        assert!(told(&watch).await, "a switched link");
    }
}
