//! Why a model could not be lowered.

use thiserror::Error;

/// A typed lowering error; every variant names the config field or the tensor.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field of config.json is missing.
    #[error("config.json: {field} is missing")]
    ConfigMissing {
        /// Field.
        field: &'static str,
    },
    /// A field has a value that cannot be used.
    #[error("config.json: {field} is {found}: expected {expected}")]
    Config {
        /// Field.
        field: String,
        /// Value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The architecture has no description.
    #[error("config.json: model_type \"{0}\" is not supported; supported: {1}")]
    UnknownArchitecture(String, String),
    /// The architecture cannot serve the task.
    #[error("{architecture} is not supported for the task {task}")]
    Task {
        /// Architecture.
        architecture: &'static str,
        /// PEFT's task name.
        task: &'static str,
    },
    /// A tensor is missing.
    #[error("tensor {name} is missing from the base (and from the adapter){hint}")]
    MissingTensor {
        /// Checkpoint name.
        name: String,
        /// Advice.
        hint: String,
    },
    /// A tensor has another shape than the config says.
    #[error("tensor {name} has shape {found:?}, the config ({field}) says {expected:?}")]
    Shape {
        /// Checkpoint name.
        name: String,
        /// Found.
        found: Vec<usize>,
        /// Expected.
        expected: Vec<usize>,
        /// Config fields that decide.
        field: &'static str,
    },
    /// The program would be too large for the format.
    #[error("the model needs too many {0}")]
    TooLarge(&'static str),
}
