//! Why a merge is refused.

use std::path::{Path, PathBuf};

use crate::source::{SourceError, quote};

/// A merge that cannot be done as asked. Every message names what is in the way.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A file is broken, or a field or tensor in it is not what it must be.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The input is understood and refused, because the result would not be what the adapter's author meant.
    #[error("{}: {what} is refused: {why}", file.display())]
    Refused {
        /// The adapter's config or weights file.
        file: PathBuf,
        /// What is refused, by the name that the file uses.
        what: String,
        /// The reason, and what to do instead.
        why: String,
    },
    /// Two adapters cannot be used together.
    #[error("{a} and {b}: {problem}")]
    Conflict {
        /// One adapter.
        a: String,
        /// The other.
        b: String,
        /// What they disagree about.
        problem: String,
    },
    /// An option does not fit the adapters.
    #[error("{option}: {problem}")]
    Option {
        /// The option as the command line spells it.
        option: &'static str,
        /// What is wrong with it here.
        problem: String,
    },
    /// A tensor was asked for that the merged model does not have.
    #[error("the merged model has no tensor {}", quote(.0))]
    NoTensor(String),
    /// A weight holds NaN or an infinity.
    #[error("tensor {} is not finite: element {at} is {value} ({from})", quote(tensor))]
    NotFinite {
        /// The merged tensor's name.
        tensor: String,
        /// Row-major index of the first such element.
        at: usize,
        /// The element: NaN or an infinity.
        value: f32,
        /// Where it comes from.
        from: String,
    },
}

impl MergeError {
    pub(crate) fn refused(file: &Path, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { file: file.to_owned(), what: what.into(), why: why.into() }
    }
}

/// Something that a user should know about a merge that was done.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// How much it matters.
    pub level: Level,
    /// The adapter (or `base`) that it is about.
    pub about: String,
    /// One sentence.
    pub text: String,
}

/// How much a [`Note`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth recording.
    Info,
    /// May not be what the user expects.
    Warning,
}
