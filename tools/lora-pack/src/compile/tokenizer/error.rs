//! Why a tokenizer was refused.

/// A refusal: it names the part of `tokenizer.json` and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer.json: {place}: {what}")]
pub struct TokenizerError {
    /// Part of the file, as a path of keys.
    pub place: String,
    /// What is wrong, and where it can be known, what to do.
    pub what: String,
}

/// A refusal at `place`.
pub(super) fn refuse<T>(place: impl Into<String>, what: impl Into<String>) -> Result<T, TokenizerError> {
    Err(error(place, what))
}

/// The error of a refusal.
pub(super) fn error(place: impl Into<String>, what: impl Into<String>) -> TokenizerError {
    TokenizerError { place: place.into(), what: what.into() }
}
