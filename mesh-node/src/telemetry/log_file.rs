//! Files that access logs are written to. Workers append to buffers in memory; one thread of the process
//! writes them out. A slow disk or a full pipe never holds a worker: lines beyond the bound are dropped and
//! counted.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::remote_log::RemoteLogs;
use super::stats::FilesystemStats;

/// How long a line may stay in memory.
const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// A buffer that is this full is written at once.
const WRITE_BYTES: usize = 64 << 10;
/// Bound on each buffer; a line that does not fit is dropped.
const MAX_BUFFERED_BYTES: usize = 1 << 20;
/// Buffers per file: workers seldom share one.
const SHARDS: usize = 8;

/// A log file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open access log {}: {source}; its folder must exist and be writable", path.display())]
pub struct OpenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// All log files of the process.
#[derive(Debug)]
pub struct LogFiles {
    files: Mutex<HashMap<PathBuf, Weak<LogFile>>>,
    stats: Arc<FilesystemStats>,
    wake: Arc<Wake>,
    remote: RemoteLogs,
}

/// Wakes the writing thread before its interval is over.
#[derive(Debug, Default)]
struct Wake {
    asked: Mutex<bool>,
    condition: Condvar,
}

/// An open log file. Dropping the last handle writes what is buffered.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    shards: [Shard; SHARDS],
    /// Locked by whoever writes out, never by `append`.
    output: Mutex<Output>,
    stats: Arc<FilesystemStats>,
    wake: Arc<Wake>,
}

/// A line of the processor's cache of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Vec<u8>>);

#[derive(Debug)]
enum Output {
    Stdout,
    Stderr,
    File(File),
}

impl LogFiles {
    /// Starts the writing thread, which ends when the returned value is dropped.
    pub fn start(stats: Arc<FilesystemStats>) -> io::Result<Arc<Self>> {
        let files = Arc::new(Self {
            files: Mutex::default(),
            stats,
            wake: Arc::default(),
            remote: RemoteLogs::default(),
        });
        let (wake, weak) = (files.wake.clone(), Arc::downgrade(&files));
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            while let Some(files) = weak.upgrade() {
                files.flush();
                drop(files);
                wake.wait();
            }
        })?;
        Ok(files)
    }

    /// The file at `path`, created if it does not exist; `/dev/stdout` and `/dev/stderr` are this process's
    /// own. The same path gives the same file.
    pub fn open(&self, path: &Path) -> Result<Arc<LogFile>, OpenError> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let output = Output::open(path).map_err(|source| OpenError { path: path.to_owned(), source })?;
        let file = Arc::new(LogFile {
            path: path.to_owned(),
            shards: Default::default(),
            output: Mutex::new(output),
            stats: self.stats.clone(),
            wake: self.wake.clone(),
        });
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(path.to_owned(), Arc::downgrade(&file));
        Ok(file)
    }

    /// The logs that go to servers instead.
    pub fn remote(&self) -> &RemoteLogs {
        &self.remote
    }

    pub fn stats(&self) -> &Arc<FilesystemStats> {
        &self.stats
    }

    /// Writes everything that is buffered now, on this thread.
    pub fn flush(&self) {
        self.held().iter().for_each(|file| file.flush());
    }

    /// Opens every file again by its path (after a rotation). A file that cannot be opened keeps the old one.
    pub fn reopen(&self) {
        self.held().iter().for_each(|file| file.reopen());
    }

    fn held(&self) -> Vec<Arc<LogFile>> {
        lock(&self.files).values().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for LogFiles {
    fn drop(&mut self) {
        self.wake.ask();
    }
}

impl Wake {
    fn ask(&self) {
        *lock(&self.asked) = true;
        self.condition.notify_one();
    }

    fn wait(&self) {
        let asked = lock(&self.asked);
        let waited = self.condition.wait_timeout_while(asked, FLUSH_INTERVAL, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

impl LogFile {
    /// Appends a line to the buffer of the calling thread.
    pub fn append(&self, line: &[u8]) {
        let mut buffer = lock(&self.shards[own_shard()].0);
        if buffer.len() + line.len() > MAX_BUFFERED_BYTES {
            self.stats.write_dropped.inc();
            return;
        }
        let was_below = buffer.len() < WRITE_BYTES;
        buffer.extend_from_slice(line);
        let now_full = was_below && buffer.len() >= WRITE_BYTES;
        drop(buffer);
        self.stats.write_buffered.inc();
        if now_full {
            self.wake.ask();
        }
    }

    fn flush(&self) {
        let mut output = lock(&self.output);
        for shard in &self.shards {
            let lines = std::mem::take(&mut *lock(&shard.0));
            if lines.is_empty() {
                continue;
            }
            match output.write(&lines) {
                Ok(()) => self.stats.write_completed.inc(),
                Err(error) => {
                    self.stats.write_failed.inc();
                    tracing::debug!(path = %self.path.display(), %error, "access log not written");
                }
            }
        }
    }

    fn reopen(&self) {
        self.flush();
        match Output::open(&self.path) {
            Ok(new) => *lock(&self.output) = new,
            Err(error) => {
                self.stats.reopen_failed.inc();
                tracing::warn!(path = %self.path.display(), %error, "access log not reopened");
            }
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        // The descriptor itself: opening the path fails where it is a socket (under a service manager).
        match path.to_str() {
            Some("/dev/stdout") => Ok(Self::Stdout),
            Some("/dev/stderr") => Ok(Self::Stderr),
            _ => OpenOptions::new().append(true).create(true).open(path).map(Self::File),
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().write_all(lines),
            Self::File(file) => file.write_all(lines),
        }
    }
}

/// Threads take shards in turn.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mesh-node-log-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn every_line_of_every_worker_is_in_the_file_after_shutdown() {
        let folder = folder("all");
        let path = folder.join("access.log");
        let files = LogFiles::start(Arc::default()).unwrap();
        let file = files.open(&path).unwrap();
        assert!(Arc::ptr_eq(&file, &files.open(&path).unwrap()));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    (0..1000).for_each(|n| file.append(format!("{worker} {n}\n").as_bytes()));
                });
            }
        });
        files.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4000);
        assert_eq!(text.lines().filter(|line| line.starts_with("3 ")).count(), 1000);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_rotated_file_is_left_alone_after_reopen() {
        let folder = folder("rotate");
        let (path, rotated) = (folder.join("access.log"), folder.join("access.log.1"));
        let files = LogFiles::start(Arc::default()).unwrap();
        let file = files.open(&path).unwrap();
        file.append(b"before\n");
        files.flush();
        std::fs::rename(&path, &rotated).unwrap();
        files.reopen();
        file.append(b"after\n");
        files.flush();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "before\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_stuck_disk_costs_lines_not_workers() {
        let stats = Arc::new(FilesystemStats::default());
        let file = LogFile {
            path: PathBuf::new(),
            shards: Default::default(),
            output: Mutex::new(Output::File(File::open("/dev/null").unwrap())),
            stats: stats.clone(),
            wake: Arc::default(),
        };
        let line = vec![b'x'; MAX_BUFFERED_BYTES / 2];
        (0..3).for_each(|_| file.append(&line));
        assert_eq!((stats.write_buffered.get(), stats.write_dropped.get()), (2, 1));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let files = LogFiles::start(Arc::default()).unwrap();
        let error = files.open(Path::new("/nonexistent/access.log")).unwrap_err().to_string();
        assert!(error.starts_with("cannot open access log /nonexistent/access.log: No such file"), "{error}");
    }
}
