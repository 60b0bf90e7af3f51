//! Typed access to the fields of `adapter_config.json`.
//!
//! `null` counts as absent everywhere, as PEFT's dataclass defaults do. A field of another type than PEFT would write
//! is an error that names it: nothing is converted by guess, except a float without a fraction where an integer stands.

use std::path::Path;

use serde_json::{Map, Value};

use crate::source::{SourceError, quote};

/// One config file while it is taken apart.
pub struct Fields<'a> {
    pub file: &'a Path,
    object: &'a Map<String, Value>,
}

type Result<T> = std::result::Result<T, SourceError>;

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { file, object }
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    pub fn bad(&self, field: impl Into<String>, problem: impl Into<String>) -> SourceError {
        SourceError::field(self.file, field, problem)
    }

    pub fn bool(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(field, format!("{} is not true or false", short(other)))),
        }
    }

    pub fn string(&self, field: &str) -> Result<Option<&'a str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(field, format!("{} is not a string", short(other)))),
        }
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        self.get(field).map(|v| self.as_number(field, v)).transpose()
    }

    pub fn as_number(&self, field: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|n| n.is_finite());
        number.ok_or_else(|| self.bad(field, format!("{} is not a finite number", short(value))))
    }

    /// A non-negative integer.
    pub fn index(&self, field: &str, value: &Value) -> Result<usize> {
        let number = self.as_number(field, value)?;
        if number < 0.0 || number.fract() != 0.0 || number > 1e15 {
            return Err(self.bad(field, format!("{} is not a non-negative integer", short(value))));
        }
        Ok(number as usize)
    }

    /// A rank: an integer of at least 1.
    pub fn rank(&self, field: &str, value: &Value) -> Result<usize> {
        let number = self.as_number(field, value)?;
        if number < 1.0 || number.fract() != 0.0 || number > 1e9 {
            return Err(self.bad(field, format!("rank {} must be a positive integer", short(value))));
        }
        Ok(number as usize)
    }

    /// A list of strings; empty when absent.
    pub fn strings(&self, field: &str) -> Result<Vec<String>> {
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|v| self.as_string(field, v)).collect(),
            Some(other) => Err(self.bad(field, format!("{} is not a list of strings", short(other)))),
        }
    }

    pub fn as_string(&self, field: &str, value: &Value) -> Result<String> {
        value.as_str().map(str::to_owned).ok_or_else(|| self.bad(field, format!("{} is not a string", short(value))))
    }

    /// A list of non-negative integers.
    pub fn indices(&self, field: &str, value: &Value) -> Result<Vec<usize>> {
        match value {
            Value::Array(items) => items.iter().map(|v| self.index(field, v)).collect(),
            other => Err(self.bad(field, format!("{} is not a list of integers", short(other)))),
        }
    }

    /// A map, in the file's order; empty when absent.
    pub fn map(&self, field: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.bad(field, format!("{} is not an object", short(other)))),
        }
    }
}

/// A value as a message may show it.
pub fn short(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {}", map.len()),
        Value::String(s) => quote(s),
        other => other.to_string(),
    }
}

/// Whether a value is what an unused option looks like: null, false, zero, or empty.
pub fn looks_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}
