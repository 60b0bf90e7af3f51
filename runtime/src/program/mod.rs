//! The op program: what the records of a file mean, their verification, and the memory plan.

pub mod op;
pub mod plan;
pub mod verify;

pub use op::{BiasKind, EmbedSource, NormKind, Op, OpCode, SelectRows};
pub use plan::{AdapterNeeds, Plan, SessionConfig};
