//! One process per instance. Two would take each other's programs, maps and listeners for their own leftovers,
//! which a new process is to adopt; so the first holds a lock, which the kernel takes back however it ends.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::CaptureError;
use super::settings::Settings;

/// The right to act for an instance, until dropped.
#[derive(Debug)]
pub(super) struct InstanceLock {
    file: Flock<File>,
    path: PathBuf,
}

impl InstanceLock {
    /// # Errors
    /// `InstanceInUse` while another process holds it.
    pub(super) fn take(settings: &Settings) -> Result<Self, CaptureError> {
        let path = settings.state_dir.join(format!("{}.lock", settings.instance));
        let failed = |source: io::Error| CaptureError::File { action: "locking", path: path.clone(), source };
        std::fs::create_dir_all(&settings.state_dir).map_err(failed)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
                Ok(Self { file, path })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut holder));
                Err(CaptureError::InstanceInUse { instance: settings.instance.clone(), holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Leaves no file behind. The lock is held to the end, so that no other process takes it for its own.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
        drop(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_of_an_instance_is_refused_and_told_of_the_first_until_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { state_dir: folder.path().join("state"), ..Settings::default() };
        let first = InstanceLock::take(&settings).unwrap();
        let error = InstanceLock::take(&settings).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "instance \"default\" is run by process {}; stop that first, or set another instance",
                std::process::id()
            )
        );
        let other = Settings { instance: "other".into(), ..settings.clone() };
        InstanceLock::take(&other).unwrap().remove();
        drop(first);
        InstanceLock::take(&settings).unwrap().remove();
        assert_eq!(std::fs::read_dir(&settings.state_dir).unwrap().count(), 0);
    }
}
