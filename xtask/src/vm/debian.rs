//! Debian's kernel packages of other releases, by the machine's own mirror.
//!
//! The source list is made from the machine's: same mirror, other suite. Everything is kept below
//! `.local/vm`; the machine's own package lists are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{apt_sources, tree};

/// A kernel and its modules, unpacked.
pub struct Kernel {
    /// As `uname -r`.
    pub release: String,
    pub image: PathBuf,
    modules: PathBuf,
}

/// Kernel versions and the Debian release that has them.
const SUITES: [(&str, &str); 4] =
    [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("7.x", "sid")];

/// Finds the kernel in the cache, or fetches it.
pub fn kernel(version: &str) -> Result<Kernel> {
    let suite = suite_of(version)?;
    let folder = tree::root().join(".local/vm").join(suite);
    let unpacked = folder.join("root");
    if !unpacked.join("complete").exists() {
        fetch(&folder, suite)?;
    }
    open(&unpacked)
}

/// The suite that has a kernel, which may be named itself.
fn suite_of(kernel: &str) -> Result<&'static str> {
    let known = || SUITES.map(|(version, suite)| format!("{version} ({suite})")).join(", ");
    let is = |version: &str| version == kernel || version.strip_suffix(".x") == Some(kernel);
    let found = SUITES.iter().find(|(version, suite)| is(version) || *suite == kernel);
    found.map(|(_, suite)| *suite).with_context(|| format!("no kernel {kernel}; known: {}", known()))
}

/// The image is in `boot`, or, in newer packages, beside its modules.
fn open(unpacked: &Path) -> Result<Kernel> {
    for folder in ["lib/modules", "usr/lib/modules"] {
        for entry in fs::read_dir(unpacked.join(folder)).into_iter().flatten().flatten() {
            let release = entry.file_name().to_string_lossy().into_owned();
            let modules = entry.path();
            let images = [unpacked.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|image| image.is_file()) {
                return Ok(Kernel { release, image, modules });
            }
        }
    }
    bail!("the kernel package in {} holds no image with modules", unpacked.display())
}

/// Fetches and unpacks the newest kernel package of a suite.
fn fetch(folder: &Path, suite: &str) -> Result<()> {
    eprintln!("vm: fetching Debian {suite}'s kernel package (once, about 60 MB)");
    fs::remove_dir_all(folder).ok();
    for sub in ["lists/partial", "cache/archives/partial", "root"] {
        fs::create_dir_all(folder.join(sub)).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(folder.join("sources.list"), source_line(suite)?)?;
    apt(folder, "apt-get", &["-q", "update"])?;
    let meta = apt(folder, "apt-cache", &["depends", "linux-image-amd64"])?;
    let package = meta
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("linux-image-amd64 of {suite} names no kernel"))?
        .to_owned();
    // Newer releases keep the modules in packages of their own.
    let parts = apt(folder, "apt-cache", &["depends", &package])?;
    let mut packages = vec![package];
    packages.extend(
        parts
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-modules-") || name.starts_with("linux-binary-"))
            .map(str::to_owned),
    );
    for package in &packages {
        apt(folder, "apt-get", &["-q", "download", package])?;
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(entry.path()).arg(folder.join("root"));
            output(&mut unpack)?;
            fs::remove_file(entry.path())?;
        }
    }
    fs::write(folder.join("root/complete"), "")?;
    Ok(())
}

/// Runs an apt tool in `folder` with lists, cache and sources of its own.
fn apt(folder: &Path, tool: &str, args: &[&str]) -> Result<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(tool);
    for option in [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", at("lists")),
        "Dir::State::status=/dev/null".to_owned(),
        format!("Dir::Cache={}", at("cache")),
        "APT::Sandbox::User=root".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command.args(args).current_dir(folder);
    output(&mut command)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("could not start {name}"))?;
    ensure!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A source list of `suite` from the mirror that this machine uses for its own release.
fn source_line(suite: &str) -> Result<String> {
    let uri = apt_sources::mirror().context("kernel packages come from Debian's mirror")?;
    let keyring =
        ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"]
            .into_iter()
            .find(|path| Path::new(path).exists());
    let signed = keyring.map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
    Ok(format!("deb {signed}{uri} {suite} main\n"))
}

impl Kernel {
    /// The named modules and what they depend on, in loading order; a module that the kernel has built
    /// in is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        collect(&self.modules, &mut files)?;
        let mut loaded = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            self.add_module(name, &files, &mut loaded, &mut order)?;
        }
        Ok(order)
    }

    fn add_module(
        &self,
        name: &str,
        files: &[PathBuf],
        loaded: &mut BTreeSet<String>,
        order: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let Some(path) = files.iter().find(|path| module_name(path) == name) else { return Ok(()) };
        if !loaded.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = read_module(path)?;
        for needed in dependencies(&bytes) {
            self.add_module(&needed, files, loaded, order)?;
        }
        order.push((name.to_owned(), bytes));
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), files)?,
            false => files.push(entry.path()),
        }
    }
    Ok(())
}

/// `nf_tables` of `.../nf-tables.ko.xz`; an empty name if the file is no module.
fn module_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match name.split_once(".ko") {
        Some((stem, _)) => stem.replace('-', "_"),
        None => String::new(),
    }
}

/// A module's content, uncompressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let out = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("could not start {tool}"))?;
    ensure!(out.status.success(), "{tool} cannot read {}", path.display());
    Ok(out.stdout)
}

/// The `depends=` entry of a module's information section.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|w| w == key) else { return Vec::new() };
    let rest = &module[start + key.len()..];
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_after_those_it_depends_on() {
        assert_eq!(dependencies(b"x\0depends=stp,llc\0y"), ["stp", "llc"]);
        assert_eq!(dependencies(b"x\0depends=\0y"), Vec::<String>::new());
        assert_eq!(module_name(Path::new("/m/nf-tables.ko.xz")), "nf_tables");
    }

    #[test]
    fn a_kernel_is_named_by_its_number_or_by_its_suite() {
        assert_eq!(suite_of("5.10").unwrap(), "bullseye");
        assert_eq!(suite_of("7").unwrap(), "sid");
        assert_eq!(suite_of("7.x").unwrap(), "sid");
        assert_eq!(suite_of("trixie").unwrap(), "trixie");
        let unknown = suite_of("4.19").unwrap_err().to_string();
        assert!(unknown.contains("6.12 (trixie)"), "{unknown}");
    }

    #[test]
    fn the_image_is_found_in_both_layouts_of_kernel_packages() {
        let folder = std::env::temp_dir().join(format!("xtask-debian-{}", std::process::id()));
        for (modules, image) in [
            ("lib/modules/6.1-amd64", "boot/vmlinuz-6.1-amd64"),
            ("usr/lib/modules/7.2-amd64", "usr/lib/modules/7.2-amd64/vmlinuz"),
        ] {
            fs::create_dir_all(folder.join(modules)).unwrap();
            fs::create_dir_all(folder.join("boot")).unwrap();
            assert!(open(&folder).is_err());
            fs::write(folder.join(image), "").unwrap();
            let kernel = open(&folder).unwrap();
            assert_eq!(kernel.image, folder.join(image));
            assert_eq!(kernel.modules, folder.join(modules));
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
