//! The commands of `docs/install.md`, as they stand there.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, root};

/// The marked blocks of the guide by name.
pub struct Guide {
    blocks: BTreeMap<String, String>,
    run: RefCell<Vec<String>>,
}

impl Guide {
    pub fn read() -> Result<Guide> {
        let text = std::fs::read_to_string(root().join("docs/install.md")).context("docs/install.md")?;
        Ok(Guide { blocks: blocks(&text)?, run: RefCell::default() })
    }

    /// Runs a block and returns what it printed.
    pub fn run(&self, cluster: &Cluster, name: &str) -> Result<String> {
        let script = self.blocks.get(name).with_context(|| format!("the guide has no block {name:?}"))?;
        self.run.borrow_mut().push(name.to_owned());
        cluster.shell(script).with_context(|| format!("block {name:?} of docs/install.md"))
    }

    /// Fails if a block has not been run.
    pub fn was_followed(&self) -> Result<()> {
        let run = self.run.borrow();
        let left: Vec<&String> = self.blocks.keys().filter(|name| !run.contains(name)).collect();
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
