//! Strict reading of JSON: every key is asked for by name, and what nobody asked for is refused.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::{TokenizerError, error, refuse};

type Result<T> = std::result::Result<T, TokenizerError>;

/// An object under inspection.
pub(super) struct Object<'v> {
    /// Path of keys, for errors.
    pub place: String,
    map: &'v Map<String, Value>,
    asked: BTreeSet<&'static str>,
}

impl<'v> Object<'v> {
    pub(super) fn new(value: &'v Value, place: impl Into<String>) -> Result<Self> {
        let place = place.into();
        match value {
            Value::Object(map) => Ok(Self { place, map, asked: BTreeSet::new() }),
            _ => refuse(place, "not an object"),
        }
    }

    /// Path of a key of this object.
    pub(super) fn at(&self, key: &str) -> String {
        if self.place.is_empty() { key.into() } else { format!("{}.{key}", self.place) }
    }

    /// The value of a key; null counts as absent.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'v Value> {
        self.asked.insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn require(&mut self, key: &'static str) -> Result<&'v Value> {
        let place = self.at(key);
        self.get(key).ok_or_else(|| error(place, "missing"))
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<&'v str>> {
        let place = self.at(key);
        self.get(key).map(|v| v.as_str().ok_or_else(|| error(place, "not a string"))).transpose()
    }

    pub(super) fn require_string(&mut self, key: &'static str) -> Result<&'v str> {
        let place = self.at(key);
        self.string(key)?.ok_or_else(|| error(place, "missing"))
    }

    /// A character, written as a string of one.
    pub(super) fn require_char(&mut self, key: &'static str) -> Result<char> {
        let place = self.at(key);
        let mut chars = self.require_string(key)?.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => refuse(place, "not a single character"),
        }
    }

    pub(super) fn bool(&mut self, key: &'static str) -> Result<Option<bool>> {
        let place = self.at(key);
        self.get(key).map(|v| v.as_bool().ok_or_else(|| error(place, "not true or false"))).transpose()
    }

    pub(super) fn require_bool(&mut self, key: &'static str) -> Result<bool> {
        let place = self.at(key);
        self.bool(key)?.ok_or_else(|| error(place, "missing"))
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<Option<u64>> {
        let place = self.at(key);
        self.get(key).map(|v| v.as_u64().ok_or_else(|| error(place, "not a whole number"))).transpose()
    }

    pub(super) fn require_number(&mut self, key: &'static str) -> Result<u64> {
        let place = self.at(key);
        self.number(key)?.ok_or_else(|| error(place, "missing"))
    }

    pub(super) fn array(&mut self, key: &'static str) -> Result<&'v [Value]> {
        let place = self.at(key);
        match self.get(key) {
            Some(Value::Array(items)) => Ok(items),
            Some(_) => refuse(place, "not a list"),
            None => Ok(&[]),
        }
    }

    /// Marks keys that cannot change a token as read.
    pub(super) fn harmless(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// Refuses keys that were not asked for.
    pub(super) fn finish(self) -> Result<()> {
        match self.map.keys().find(|k| !self.asked.contains(k.as_str())) {
            Some(key) => refuse(self.at(key), "unknown field; it could change tokens, so this version refuses it"),
            None => Ok(()),
        }
    }
}

/// The name of a part's type, for `match`, and the part.
pub(super) fn typed<'v>(value: &'v Value, place: &str) -> Result<(&'v str, Object<'v>)> {
    let mut object = Object::new(value, place)?;
    let name = object.require_string("type")?;
    Ok((name, object))
}
