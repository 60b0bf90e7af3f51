//! What can be wrong with an input file.

use std::path::{Path, PathBuf};

/// A file that cannot be used, with the place in it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system refused.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file as a whole is not what it should be.
    #[error("{}: {problem}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong and, where it helps, what to do.
        problem: String,
    },
    /// A field of a JSON file.
    #[error("{}: field `{field}`: {problem}", file.display())]
    Field {
        /// The JSON file.
        file: PathBuf,
        /// The field's name, with dots for nested ones.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// One tensor of a weights file.
    #[error("{}: tensor {}: {problem}", file.display(), quote(tensor))]
    Tensor {
        /// The weights file.
        file: PathBuf,
        /// The tensor's name as the file spells it.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl SourceError {
    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }

    pub(crate) fn file(file: &Path, problem: impl Into<String>) -> Self {
        Self::File { file: file.to_owned(), problem: problem.into() }
    }

    pub(crate) fn field(file: &Path, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { file: file.to_owned(), field: field.into(), problem: problem.into() }
    }

    pub(crate) fn tensor(file: &Path, tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: tensor.into(), problem: problem.into() }
    }
}

/// A name from a file, in quotes, without control characters and of bounded length, fit for a message.
pub fn quote(name: &str) -> String {
    const MAX: usize = 160;
    let mut out = String::from("'");
    for (count, c) in name.chars().enumerate() {
        if count == MAX {
            out.push('…');
            break;
        }
        match c {
            '\'' => out.push('\''),
            c => out.extend(c.escape_debug()),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn names_are_made_fit_for_a_terminal() {
        assert_eq!(quote("model.layers.0"), "'model.layers.0'");
        assert_eq!(quote("a\x1b[2Jb\n"), "'a\\u{1b}[2Jb\\n'");
        assert!(quote(&"x".repeat(10_000)).len() < 200);
    }
}
