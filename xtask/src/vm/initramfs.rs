//! An initramfs: a cpio archive in the `newc` format (kernel documentation, "initramfs buffer format"),
//! with programs brought along together with the libraries they load.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Entries so far. Parent folders are added by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, (0, 0), &[]);
    }

    pub fn file(&mut self, name: &str, content: &[u8], permissions: u32) {
        self.entry(name, FILE | permissions, (0, 0), content);
    }

    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, LINK, (0, 0), target.as_bytes());
    }

    /// `/dev/console`, which the kernel opens for `/init`.
    pub fn console(&mut self) {
        self.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    }

    /// A program with the libraries that the dynamic loader would give it here.
    pub fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let content = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        self.file(name, &content, 0o755);
        for library in libraries(path)? {
            let inside = library.display().to_string();
            let content = std::fs::read(&library).with_context(|| format!("reading {inside}"))?;
            self.file(inside.trim_start_matches('/'), &content, 0o755);
        }
        Ok(())
    }

    /// The same without debug information, which would be most of the archive.
    pub fn stripped_program(&mut self, name: &str, path: &Path) -> Result<()> {
        let stripped = std::env::temp_dir().join(format!("xtask-vm-{}", std::process::id()));
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(path).status();
        let source = match status {
            Ok(status) if status.success() => &stripped,
            _ => path,
        };
        let added = self.program(name, source);
        std::fs::remove_file(&stripped).ok();
        added
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Adds an entry; a name that is there already stays as it is.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
        let fields = [
            self.names.len() as u32, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // modification time
            content.len() as u32,
            0,
            0, // device of the file system
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// What `ldd` resolves, the dynamic loader included. A static program has none.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("could not start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let missing: Vec<_> = text.lines().filter(|line| line.contains("not found")).collect();
    ensure!(missing.is_empty(), "{} lacks libraries: {}", program.display(), missing.join(", "));
    let path_of = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path_of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_files_and_every_entry_is_aligned() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"12345", 0o644);
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).map(|i| i as i64);
        assert!(at("a/b/c") > at("a/b"));
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.contains("TRAILER!!!"));
    }
}
