//! Tokenizers: recorded expectations of the conformance kit.

mod recorded;
