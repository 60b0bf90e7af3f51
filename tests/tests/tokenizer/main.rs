//! Tokenizers: recorded expectations of the conformance kit, and the `tokenizers` crate as the judge.

mod both;
mod fuzz;
mod hostile;
mod recorded;
mod regressions;
mod speed;
mod texts;
