//! What this machine's apt sources say: packages come from the mirror that it uses already, so none is named here.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// The text of every source list.
pub fn texts() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}

/// The first Debian archive (no security or snapshot archive), without a slash at its end.
pub fn mirror() -> Result<String> {
    match texts().iter().flat_map(|text| text.lines()).find_map(mirror_in) {
        Some(uri) => Ok(uri),
        None => bail!("no Debian mirror in /etc/apt/sources.list or sources.list.d"),
    }
}

/// The archive named by one line, of either format of source lists.
fn mirror_in(line: &str) -> Option<String> {
    let line = line.trim();
    let words = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
    let uri = words.split_whitespace().find(|word| word.contains("://"))?.trim_end_matches('/');
    uri.ends_with("/debian").then(|| uri.to_owned())
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn the_mirror_is_found_in_either_format_and_security_is_not_taken_for_it() {
        let found = Some("http://mirror.test/debian".to_owned());
        assert_eq!(mirror_in("deb [signed-by=/k.gpg] http://mirror.test/debian/ bookworm main"), found);
        assert_eq!(mirror_in("URIs: http://mirror.test/debian"), found);
        assert_eq!(mirror_in("deb http://mirror.test/debian-security bookworm-security main"), None);
        assert_eq!(mirror_in("# deb http://mirror.test/debian bookworm main"), None);
    }
}
