//! A folder as an OCI image in one archive, as `ctr images import`, `podman load`, `skopeo` and `kind load
//! image-archive` take it (OCI image format specification 1.0: layout, index, manifest, configuration, one layer).
//!
//! The same folder gives the same bytes: no times, no users, sorted names. It must not know what is in the folder.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What is packed.
#[derive(Debug)]
pub struct Image<'a> {
    /// `repository:tag`.
    pub name: &'a str,
    pub folder: &'a Path,
    pub entrypoint: &'a [&'a str],
    /// `user:group` of its processes, in numbers.
    pub user: &'a str,
    /// Whether the layer is compressed; one that only goes to a cluster on this machine need not be.
    pub compressed: bool,
}

const TYPE: &str = "application/vnd.oci.image";

impl Image<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    /// When the folder cannot be read or the archive not be written.
    pub fn write(&self, out: &Path) -> Result<()> {
        let layer = Blob::new("layer.v1.tar", layer(self.folder)?);
        let diff_id = layer.digest.clone();
        let layer = if self.compressed {
            let mut packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
            packed.write_all(&layer.content)?;
            Blob::new("layer.v1.tar+gzip", packed.finish()?)
        } else {
            layer
        };
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture, "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "WorkingDir": "/", "User": self.user },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
        }))?;
        let config = Blob::new("config.v1+json", config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": format!("{TYPE}.manifest.v1+json"),
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        }))?;
        let manifest = Blob::new("manifest.v1+json", manifest);
        let mut described = manifest.descriptor();
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        described["annotations"] =
            json!({ "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag });
        described["platform"] = json!({ "architecture": architecture, "os": "linux" });
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [described] }))?;

        let mut archive = tar::Builder::new(Vec::new());
        add_file(&mut archive, Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        add_file(&mut archive, Path::new("index.json"), &index, 0o644)?;
        for blob in [&config, &manifest, &layer] {
            let path = PathBuf::from("blobs").join(blob.digest.replace(':', "/"));
            add_file(&mut archive, &path, &blob.content, 0o644)?;
        }
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(out, archive.into_inner()?).with_context(|| format!("writing {}", out.display()))
    }
}

/// A part of the archive under the name of its digest, which takes a while to compute.
struct Blob {
    kind: &'static str,
    content: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(kind: &'static str, content: Vec<u8>) -> Self {
        Self { kind, digest: digest(&content), content }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": format!("{TYPE}.{}", self.kind), "digest": self.digest, "size": self.content.len() })
    }
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The folder as a tar file, unpacked.
fn layer(folder: &Path) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    add_folder(&mut archive, folder, Path::new(""))?;
    Ok(archive.into_inner()?)
}

fn add_folder(archive: &mut tar::Builder<Vec<u8>>, folder: &Path, below: &Path) -> Result<()> {
    let mut entries = fs::read_dir(folder.join(below))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        let metadata = fs::metadata(entry.path()).with_context(|| entry.path().display().to_string())?;
        if metadata.is_dir() {
            let mut header =
                header(tar::EntryType::Directory, 0, if path == Path::new("tmp") { 0o1777 } else { 0o755 });
            archive.append_data(&mut header, path.join(""), std::io::empty())?;
            add_folder(archive, folder, &path)?;
        } else {
            use std::os::unix::fs::PermissionsExt;
            let executable = metadata.permissions().mode() & 0o111 != 0;
            add_file(archive, &path, &fs::read(entry.path())?, if executable { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add_file(archive: &mut tar::Builder<Vec<u8>>, path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, content.len() as u64, mode);
    archive.append_data(&mut header, path, content).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn every_digest_in_the_archive_is_that_of_a_blob_in_it_and_the_same_folder_gives_the_same_bytes() {
        let work = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        let folder = work.join("files");
        fs::create_dir_all(folder.join("usr/bin")).unwrap();
        fs::write(folder.join("usr/bin/program"), "it").unwrap();
        let image = Image {
            name: "localhost/it:7",
            folder: &folder,
            entrypoint: &["/usr/bin/program"],
            user: "0:0",
            compressed: true,
        };
        let (first, second) = (work.join("1.tar"), work.join("2.tar"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(&first).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        let blob = |descriptor: &Value| -> Vec<u8> {
            let digest_told = descriptor["digest"].as_str().unwrap();
            let content = files[&format!("blobs/{}", digest_told.replace(':', "/"))].clone();
            assert_eq!(digest(&content), digest_told);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let described = &index["manifests"][0];
        assert_eq!(described["annotations"]["io.containerd.image.name"], "localhost/it:7");
        let manifest: Value = serde_json::from_slice(&blob(described)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/program");
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let mut layer = tar::Archive::new(&layer[..]);
        let names: Vec<String> =
            layer.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["usr/", "usr/bin/", "usr/bin/program"]);
        fs::remove_dir_all(&work).unwrap();
    }
}
