//! Keys that compiled configuration holds on to. Each name has one place in the process, where its value is put when
//! layers change: reading it needs no search.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use super::value::{Of, Value, Values};

/// A key; equal names are one.
#[derive(Clone)]
pub struct Key(Arc<Place>);

struct Place {
    name: Box<str>,
    /// The value can be left alone while there is none.
    is_set: AtomicBool,
    value: ArcSwapOption<Value>,
}

#[derive(Default)]
struct Table {
    places: HashMap<Box<str>, Weak<Place>, ahash::RandomState>,
    values: Values,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

/// These values hold from now on.
pub(super) fn publish(values: Values) {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    table.places.retain(|_, place| place.strong_count() > 0);
    for (name, place) in &table.places {
        if let Some(place) = place.upgrade() {
            place.set(values.get(&**name).cloned());
        }
    }
    table.values = values;
}

impl Place {
    fn set(&self, value: Option<Value>) {
        let is_set = value.is_some();
        self.value.store(value.map(Arc::new));
        self.is_set.store(is_set, Ordering::Release);
    }
}

impl Key {
    /// The key of this name.
    pub fn named(name: &str) -> Self {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = table.places.get(name).and_then(Weak::upgrade) {
            return Self(place);
        }
        let place = Arc::new(Place {
            name: name.into(),
            is_set: AtomicBool::new(false),
            value: ArcSwapOption::empty(),
        });
        place.set(table.values.get(name).cloned());
        if table.places.len() == table.places.capacity() {
            // What nobody holds any more leaves before room is made.
            table.places.retain(|_, place| place.strong_count() > 0);
        }
        table.places.insert(name.into(), Arc::downgrade(&place));
        Self(place)
    }

    /// What the value is as this type, if it has one and is one.
    fn get<T: Of>(&self) -> Option<T> {
        if !self.0.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.0.value.load().as_deref().and_then(T::of)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.0.name).finish()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A value of the configuration that a runtime key can change.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting<T> {
    pub default: T,
    key: Option<Key>,
}

impl<T: Of> Setting<T> {
    /// `key`: empty if there is none.
    pub fn new(default: T, key: &str) -> Self {
        Self { default, key: (!key.is_empty()).then(|| Key::named(key)) }
    }

    /// One that nothing changes.
    pub fn fixed(default: T) -> Self {
        Self { default, key: None }
    }

    pub fn now(&self) -> T {
        self.key.as_ref().and_then(Key::get).unwrap_or(self.default)
    }
}

impl Setting<super::Fraction> {
    /// Does a request with this random number belong to the share?
    pub fn holds(&self, random: u64) -> bool {
        let (numerator, denominator) = self.now();
        random % u64::from(denominator.max(1)) < u64::from(numerator)
    }

    /// Does chance decide for it?
    pub fn drawn(&self) -> bool {
        let (numerator, denominator) = self.now();
        numerator >= denominator || fastrand::u32(..denominator.max(1)) < numerator
    }
}
