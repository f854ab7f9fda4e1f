//! `cargo xtask image`: mesh-node as a container image, an OCI archive made without docker, with a bill of materials
//! beside it.
//!
//! The image holds the program, the kernel programs and the C library of the machine it is made on: no shell, no
//! package manager, nothing to run but mesh-node. `deploy/Dockerfile` packs the same folder (`--folder`). It must not
//! know how a cluster gets an image.

mod archive;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build_ebpf, tree};
pub use archive::Image;

/// Where mesh-node is in its image; the kernel programs lie beside it, where it looks for them first.
const PROGRAM: &str = "usr/bin/mesh-node";
const OBJECT: &str = "usr/bin/mesh-ebpf.o";

#[derive(clap::Args)]
pub struct Args {
    /// Name and tag of the image
    #[arg(long, default_value_t = default_name())]
    name: String,
    /// Cargo profile of the program
    #[arg(long, default_value = "release")]
    profile: String,
    /// The archive; the bill of materials gets the same name with `.cdx.json`
    #[arg(long, default_value_os_t = tree::target_dir().join("image/mesh-node.tar"))]
    out: PathBuf,
    /// Only the image's files, in this folder (made anew), for another builder of images
    #[arg(long, conflicts_with = "out")]
    folder: Option<PathBuf>,
}

/// The name that the manifests in `deploy/` use.
pub fn default_name() -> String {
    format!("localhost/mesh-node:{}", env!("CARGO_PKG_VERSION"))
}

pub fn run(args: Args) -> Result<()> {
    build_ebpf::run(build_ebpf::Args::default())?;
    let mut build = Command::new(tree::cargo());
    // All of the workspace's features, as everywhere: with others all dependencies would be built anew.
    build.args(["build", "--locked", "--profile", &args.profile, "--workspace", "--bin", "mesh-node"]);
    ensure!(
        build.current_dir(tree::root()).status().context("could not start cargo")?.success(),
        "mesh-node was not built"
    );
    let program = tree::profile_dir(&args.profile).join("mesh-node");
    match &args.folder {
        Some(folder) => mesh_node(folder, &program),
        None => {
            let folder = args.out.with_extension("files");
            mesh_node(&folder, &program)?;
            let entrypoint = &["/usr/bin/mesh-node"];
            let image =
                Image { name: &args.name, folder: &folder, entrypoint, user: "0:0", compressed: true };
            image.write(&args.out)?;
            let bill = args.out.with_extension("cdx.json");
            fs::write(&bill, sbom::of("mesh-node")?).with_context(|| bill.display().to_string())?;
            let size = fs::metadata(&args.out)?.len();
            println!("{} in {} ({:.1} MiB)", args.name, args.out.display(), size as f64 / f64::from(1 << 20));
            println!("bill of materials in {}", bill.display());
            Ok(())
        }
    }
}

/// Makes `folder` anew with the files of mesh-node's image.
pub fn mesh_node(folder: &Path, program: &Path) -> Result<()> {
    begin(folder)?;
    add_program(folder, program, PROGRAM)?;
    let object = tree::bpf_object();
    fs::copy(&object, folder.join(OBJECT)).with_context(|| {
        format!("{}: make the kernel programs with `cargo xtask build-ebpf`", object.display())
    })?;
    Ok(())
}

/// An empty folder with what every image has: names of users and hosts come from files, `/tmp` can be written.
pub fn begin(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n"),
        ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
        ("etc/nsswitch.conf", "hosts: files dns\n"),
    ] {
        put(&folder.join(name), text.as_bytes())?;
    }
    fs::create_dir_all(folder.join("tmp"))?;
    Ok(())
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// Adds a program without its debugging information, and the libraries that it is linked with.
pub fn add_program(folder: &Path, program: &Path, place: &str) -> Result<()> {
    let to = folder.join(place);
    put(&to, &[])?;
    let mut strip = Command::new("strip");
    let stripped = strip.arg("-o").arg(&to).arg(program).status().context("strip (package binutils)")?;
    ensure!(stripped.success(), "{} is not a program", program.display());
    let listed = Command::new("ldd").arg(program).output().context("ldd (package libc-bin)")?;
    for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
        let to = folder.join(library.strip_prefix("/").unwrap_or(&library));
        if !to.exists() {
            let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
            put(&to, &content)?;
            fs::set_permissions(&to, fs::metadata(&library)?.permissions())?;
        }
    }
    Ok(())
}

/// The files that a listing of `ldd` names: `name => /path (address)`, or `/path (address)` for the loader.
fn libraries(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_every_library_come_along_and_what_the_kernel_provides_does_not() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x7f)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found = libraries(listing);
        let expected = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
