//! What can be changed while the process runs (Envoy's runtime): values by key, in layers of which a later one wins.
//!
//! Compiled configuration holds [`Setting`]s; who reads one pays a load, and another if the key has a value. This
//! module must not know where layers come from beyond the files of a disk layer.

mod disk;
mod key;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use disk::DiskLayer;
pub use key::{Key, Setting};
pub use value::{Value, Values, flattened};

/// A share of all requests, as (numerator, denominator).
pub type Fraction = (u32, u32);

/// One layer of `layered_runtime`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    pub name: String,
    pub kind: LayerKind,
}

impl Layer {
    /// The folder in which the link of a disk layer is switched.
    pub fn watched(&self) -> Option<PathBuf> {
        match &self.kind {
            LayerKind::Disk(disk) => Some(disk.watched()),
            _ => None,
        }
    }
}

/// Where the values of a layer come from.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerKind {
    /// `static_layer`
    Static(Values),
    /// `disk_layer`
    Disk(DiskLayer),
    /// `admin_layer`: `/runtime_modify`
    Admin,
    /// `rtds_layer`: the resource of this name.
    Served(String),
}

/// Why overrides are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedOverride {
    /// Envoy's words.
    #[error("No admin layer specified")]
    NoAdminLayer,
}

/// Figures for statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub keys: usize,
    pub layers: usize,
    /// There are overrides by `/runtime_modify`.
    pub overridden: bool,
    /// Times that the layers were put together.
    pub loads: u64,
    /// Files that could not be read, and other layers that could not.
    pub errors: u64,
}

/// The layers of a process.
#[derive(Debug, Default)]
pub struct Runtime {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// With what was read of disk layers.
    layers: Vec<(Layer, Values)>,
    /// By the name of the resource.
    served: BTreeMap<String, Values>,
    overrides: Values,
    counts: Counts,
}

/// What a page shows: the names of the layers, and for each key its value in each layer and the one that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub layers: Vec<String>,
    pub entries: BTreeMap<String, (Vec<String>, String)>,
}

impl Runtime {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are the layers now. What servers gave and what was overridden stays. `cluster`: of the node, for disk
    /// layers that have a folder for it.
    pub fn configure(&self, layers: &[Layer], cluster: &str) {
        let mut inner = self.lock();
        let before = std::mem::take(&mut inner.layers);
        let held = |layer: &Layer| before.iter().find(|(held, _)| held == layer).map(|(_, own)| own.clone());
        inner.layers = layers.iter().map(|layer| (layer.clone(), held(layer).unwrap_or_default())).collect();
        inner.load(cluster);
    }

    /// A server gives these values; `None`: it has them no longer.
    pub fn serve(&self, name: &str, values: Option<Values>) {
        let mut inner = self.lock();
        match values {
            Some(values) => drop(inner.served.insert(name.to_owned(), values)),
            None => drop(inner.served.remove(name)),
        }
        inner.publish();
    }

    /// Overrides of `/runtime_modify`; an empty value takes an override back.
    ///
    /// # Errors
    /// There is no layer for it.
    pub fn set(&self, changes: &[(String, String)]) -> Result<(), RefusedOverride> {
        let mut inner = self.lock();
        if !inner.layers.iter().any(|(layer, _)| layer.kind == LayerKind::Admin) {
            return Err(RefusedOverride::NoAdminLayer);
        }
        for (key, text) in changes {
            if text.is_empty() {
                inner.overrides.remove(key);
            } else {
                inner.overrides.insert(key.clone(), Value::of_text(text));
            }
        }
        inner.publish();
        Ok(())
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub fn shown(&self) -> Shown {
        let inner = self.lock();
        let layers: Vec<_> = inner.layers.iter().map(|(layer, _)| layer.name.clone()).collect();
        let mut entries = BTreeMap::new();
        for (index, (layer, own)) in inner.layers.iter().enumerate() {
            for (key, value) in inner.of_layer(layer, own) {
                let (of_layers, winner) = entries
                    .entry(key.clone())
                    .or_insert_with(|| (vec![String::new(); layers.len()], String::new()));
                of_layers[index].clone_from(&value.text);
                winner.clone_from(&value.text);
            }
        }
        Shown { layers, entries }
    }
}

impl Inner {
    fn of_layer<'a>(&'a self, layer: &'a Layer, own: &'a Values) -> &'a Values {
        static NONE: Values = Values::new();
        match &layer.kind {
            LayerKind::Static(values) => values,
            LayerKind::Disk(_) => own,
            LayerKind::Admin => &self.overrides,
            LayerKind::Served(name) => self.served.get(name).unwrap_or(&NONE),
        }
    }

    /// Reads the files and puts the layers together.
    fn load(&mut self, cluster: &str) {
        for (layer, own) in &mut self.layers {
            let LayerKind::Disk(disk) = &layer.kind else { continue };
            match disk.read(cluster) {
                Ok(values) => *own = values,
                Err(error) => {
                    self.counts.errors += 1;
                    tracing::warn!(layer = %layer.name, "runtime: the last good values hold: {error}");
                }
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut all = Values::new();
        for (layer, own) in &self.layers {
            all.extend(self.of_layer(layer, own).iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        self.counts.keys = all.len();
        self.counts.layers = self.layers.len();
        self.counts.overridden = !self.overrides.is_empty();
        self.counts.loads += 1;
        key::publish(all);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(name: &str, kind: LayerKind) -> Layer {
        Layer { name: name.to_owned(), kind }
    }

    fn values(json: serde_json::Value) -> Values {
        flattened(json.as_object().unwrap()).unwrap()
    }

    /// The one test that publishes: keys are the process's.
    #[test]
    fn a_later_layer_wins_and_what_is_compiled_already_sees_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("current");
        std::fs::create_dir_all(root.join("sub/runtime_test")).unwrap();
        std::fs::write(root.join("sub/runtime_test/disk"), "# of the disk\n7\n").unwrap();
        std::fs::create_dir_all(root.join("over/c/runtime_test")).unwrap();
        let disk = |append| DiskLayer {
            root: root.clone(),
            subdirectory: if append { "over" } else { "sub" }.into(),
            append_service_cluster: append,
        };
        let share = Setting::new((1, 100), "runtime_test.share");
        let runtime = Runtime::default();
        assert_eq!(runtime.set(&[]), Err(RefusedOverride::NoAdminLayer));
        let own = json!({ "runtime_test": { "share": { "numerator": 5 }, "flag": true }, "runtime_test.far": 1e12 });
        let layers = [
            layer("base", LayerKind::Static(values(own))),
            layer("disk", LayerKind::Disk(disk(false))),
            layer("disk of the cluster", LayerKind::Disk(disk(true))),
            layer("served", LayerKind::Served("r".to_owned())),
            layer("admin", LayerKind::Admin),
        ];
        runtime.configure(&layers, "c");
        assert_eq!(share.now(), (5, 100));
        // A key that is compiled later has its value at once.
        assert_eq!(Setting::new(1u64, "runtime_test.disk").now(), 7);
        assert!(Setting::new(false, "runtime_test.flag").now());
        assert_eq!(Setting::new(9u64, "").now(), 9, "no key, no value");
        runtime.serve("r", Some(values(json!({ "runtime_test": { "share": 30 } }))));
        assert_eq!(share.now(), (30, 100), "a number is a percentage");
        let change = |value: &str| [("runtime_test.share".to_owned(), value.to_owned())];
        runtime.set(&change("{numerator: 2, denominator: MILLION}")).unwrap();
        assert_eq!(share.now(), (2, 1_000_000));
        let shown = runtime.shown();
        assert_eq!(shown.layers[4], "admin");
        let (of_layers, winner) = &shown.entries["runtime_test.share"];
        assert_eq!((of_layers[3].as_str(), &of_layers[4]), ("30", winner));
        assert_eq!(shown.entries["runtime_test.far"].1, "1e+12");
        std::fs::write(root.join("over/c/runtime_test/disk"), "8").unwrap();
        runtime.configure(&layers, "c");
        assert_eq!(Setting::new(1u64, "runtime_test.disk").now(), 8);
        runtime.set(&change("")).unwrap();
        runtime.serve("r", None);
        assert_eq!(share.now(), (5, 100));
        let counts = runtime.counts();
        assert_eq!((counts.layers, counts.keys, counts.overridden), (5, 4, false));
        runtime.configure(&[], "c");
        assert_eq!(share.now(), (1, 100));
    }
}
