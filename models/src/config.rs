//! Typed access to a Hugging Face `config.json`: every error names the field.

use serde_json::Value;

use crate::error::ModelError;

/// A model's config (or a nested part of it).
#[derive(Clone, Copy)]
pub struct Config<'a> {
    value: &'a Value,
}

fn shown(v: &Value) -> String {
    let mut s = v.to_string();
    if s.len() > 60 {
        s.truncate((0..=60).rev().find(|i| s.is_char_boundary(*i)).unwrap_or(0));
        s.push('…');
    }
    s
}

impl<'a> Config<'a> {
    /// Wraps a parsed config.
    #[must_use]
    pub const fn new(value: &'a Value) -> Self {
        Self { value }
    }

    /// The raw field, `None` when absent or null.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field is there, be it null.
    #[must_use]
    pub fn names(&self, field: &str) -> bool {
        self.value.get(field).is_some()
    }

    /// A nested object.
    #[must_use]
    pub fn object(&self, field: &str) -> Option<Config<'a>> {
        self.get(field).filter(|v| v.is_object()).map(Config::new)
    }

    fn bad(field: &str, found: &Value, expected: &str) -> ModelError {
        ModelError::Config { field: field.into(), found: shown(found), expected: expected.into() }
    }

    /// A whole number in `1..=limit`, required.
    ///
    /// # Errors
    /// Missing, not a number, out of range.
    pub fn count(&self, field: &'static str, limit: u32) -> Result<usize, ModelError> {
        let v = self.get(field).ok_or(ModelError::ConfigMissing { field })?;
        self.checked_count(field, v, limit)
    }

    /// Like [`Config::count`], with a default when absent.
    ///
    /// # Errors
    /// Not a number, out of range.
    pub fn count_or(&self, field: &'static str, limit: u32, default: usize) -> Result<usize, ModelError> {
        self.get(field).map_or(Ok(default), |v| self.checked_count(field, v, limit))
    }

    fn checked_count(&self, field: &str, v: &Value, limit: u32) -> Result<usize, ModelError> {
        v.as_u64()
            .or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && (0.0..4e9).contains(f)).map(|f| f as u64))
            .filter(|n| (1..=u64::from(limit)).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| Self::bad(field, v, &format!("a whole number from 1 to {limit}")))
    }

    /// A whole number ≥ 0, or `None` when absent.
    ///
    /// # Errors
    /// Not such a number.
    pub fn optional_u32(&self, field: &str) -> Result<Option<u32>, ModelError> {
        self.get(field)
            .map(|v| {
                v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| Self::bad(field, v, "a whole number"))
            })
            .transpose()
    }

    /// A finite number with a default.
    ///
    /// # Errors
    /// Not a number.
    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        self.get(field).map_or(Ok(default), |v| {
            v.as_f64().filter(|f| f.is_finite()).ok_or_else(|| Self::bad(field, v, "a finite number"))
        })
    }

    /// A finite number, or `None`.
    ///
    /// # Errors
    /// Not a number.
    pub fn optional_number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.get(field)
            .map(|v| v.as_f64().filter(|f| f.is_finite()).ok_or_else(|| Self::bad(field, v, "a finite number")))
            .transpose()
    }

    /// A flag with a default.
    ///
    /// # Errors
    /// Not a flag.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        self.get(field).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| Self::bad(field, v, "true or false")))
    }

    /// A string, or `None`.
    ///
    /// # Errors
    /// Not a string.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        self.get(field).map(|v| v.as_str().ok_or_else(|| Self::bad(field, v, "a string"))).transpose()
    }

    /// A list of strings, empty when absent.
    ///
    /// # Errors
    /// Not a list of strings.
    pub fn texts(&self, field: &str) -> Result<Vec<&'a str>, ModelError> {
        let Some(v) = self.get(field) else { return Ok(Vec::new()) };
        v.as_array()
            .and_then(|a| a.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
            .ok_or_else(|| Self::bad(field, v, "a list of strings"))
    }

    /// A list of finite numbers, or `None`.
    ///
    /// # Errors
    /// Not a list of numbers.
    pub fn numbers(&self, field: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(v) = self.get(field) else { return Ok(None) };
        v.as_array()
            .and_then(|a| a.iter().map(|x| x.as_f64().filter(|f| f.is_finite())).collect::<Option<Vec<_>>>())
            .map(Some)
            .ok_or_else(|| Self::bad(field, v, "a list of numbers"))
    }

    /// The error for a value of `field` that this program cannot represent.
    #[must_use]
    pub fn unsupported(&self, field: &str, why: &str) -> ModelError {
        Self::bad(field, self.get(field).unwrap_or(&Value::Null), why)
    }
}
