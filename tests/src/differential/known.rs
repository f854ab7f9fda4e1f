//! Disagreements that are listed with a reason (`tests/differential/known.yaml`). The list must be exact: a
//! listed case that agrees fails the suite as well.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Case (`file: name`) and reason.
pub struct Known(BTreeMap<String, String>);

impl Known {
    pub fn read(folder: &Path) -> Result<Known> {
        let path = folder.join("known.yaml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let listed: BTreeMap<String, String> =
            serde_yaml_ng::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        for (case, reason) in &listed {
            ensure!(reason.split_whitespace().count() > 3, "{}: {case} has no reason", path.display());
        }
        Ok(Known(listed))
    }

    pub fn has(&self, case: &str) -> bool {
        self.0.contains_key(case)
    }

    /// Listed cases that do not exist.
    pub fn missing<'a>(&'a self, all: &[String]) -> Vec<&'a str> {
        self.0.keys().filter(|case| !all.contains(case)).map(|case| &**case).collect()
    }
}
