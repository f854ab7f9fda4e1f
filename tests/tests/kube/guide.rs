//! The commands of `docs/install.md`, as they stand there.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, root};

/// The marked blocks of the guide by name.
pub struct Guide {
    blocks: BTreeMap<String, String>,
    /// Shell variables of this cluster.
    variables: String,
    run: RefCell<Vec<String>>,
}

impl Guide {
    pub fn read() -> Result<Guide> {
        let text = std::fs::read_to_string(root().join("docs/install.md")).context("docs/install.md")?;
        Ok(Guide { blocks: blocks(&text)?, variables: String::new(), run: RefCell::default() })
    }

    /// Sets a shell variable for all blocks.
    pub fn with(mut self, name: &str, value: &str) -> Guide {
        self.variables += &format!("export {name}='{value}'\n");
        self
    }

    /// Runs a block and returns what it printed.
    pub fn run(&self, cluster: &Cluster, name: &str) -> Result<String> {
        let script = self.blocks.get(name).with_context(|| format!("the guide has no block {name:?}"))?;
        self.run.borrow_mut().push(name.to_owned());
        cluster
            .shell(&format!("{}{script}", self.variables))
            .with_context(|| format!("block {name:?} of docs/install.md"))
    }

    /// Fails if a block has not been run; those of an installation under istiod have a name that says so.
    pub fn was_followed(&self, under_istiod: bool) -> Result<()> {
        let run = self.run.borrow();
        let meant = self.blocks.keys().filter(|name| name.starts_with("istiod-") == under_istiod);
        let left: Vec<&String> = meant.filter(|name| !run.contains(name)).collect();
        ensure!(left.is_empty(), "not run: {left:?}");
        Ok(())
    }
}

/// Each block in `sh` has a line `<!-- run: name -->` before it.
fn blocks(text: &str) -> Result<BTreeMap<String, String>> {
    let mut blocks = BTreeMap::new();
    let (mut name, mut lines) = (None, text.lines());
    while let Some(line) = lines.next() {
        if let Some(given) = line.strip_prefix("<!-- run: ") {
            name = given.strip_suffix(" -->");
        } else if line == "```sh" {
            let name = name.take().context("a block without a name")?;
            let script: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.insert(name.to_owned(), script.join("\n"));
        }
    }
    Ok(blocks)
}
