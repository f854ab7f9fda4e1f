//! Where things are in the source tree. Every subcommand asks here, so that none depends on the
//! directory it was started from.

use std::path::{Path, PathBuf};

/// The repository's top directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// `target/`, or where `CARGO_TARGET_DIR` puts it.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where Cargo puts programs of a profile.
pub fn profile_dir(profile: &str) -> PathBuf {
    target_dir().join(if profile == "dev" { "debug" } else { profile })
}

/// The compiled kernel programs, as `mesh-node` looks for them.
pub fn bpf_object() -> PathBuf {
    target_dir().join("bpf/mesh-ebpf.o")
}

/// The cargo that runs this program, or the one on `PATH`.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
