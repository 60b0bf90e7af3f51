//! What the runtime costs on a microcontroller: estimates from what `tests/firmware/measure` counts.

use lora_runtime::Model;
use lora_runtime::format::{EntryKind, Tensor};
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

/// A processor for firmware.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Code and constants of the classifier of `tests/firmware`, the larger of its programs.
    pub code_bytes: u64,
    /// Most stack that one of the programs of `tests/firmware` used, its text buffer included.
    pub stack_bytes: u64,
    /// Executed instructions per weight and token, everything else of the step included: weights of 8 bits, and of fewer.
    instructions: [f64; 2],
}

/// Cortex-M with the DSP extension, whichever it is: they run the same instructions.
const fn cortex_m(name: &'static str) -> Target {
    Target { name, code_bytes: CODE, stack_bytes: STACK, instructions: INSTRUCTIONS }
}

// As `tests/firmware/measure` and `.ci/run firmware` print them, the first and the second rounded up.
const CODE: u64 = 137_000;
const STACK: u64 = 22_000;
const INSTRUCTIONS: [f64; 2] = [11.61, 21.71];

/// What there are numbers for.
pub const TARGETS: [Target; 4] =
    [cortex_m("cortex-m4"), cortex_m("cortex-m7"), cortex_m("cortex-m33"), cortex_m("cortex-m55")];

impl Target {
    /// The target of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|t| t.name == name)
    }

    /// Executed instructions for one token of a model: of a decoder with its logits, of an encoder a token of its input.
    /// Attention grows with the context and counts as it is in short ones. `None` for float matrices, which were not
    /// measured.
    #[must_use]
    pub fn instructions_per_token(&self, model: &Model<'_>) -> Option<f64> {
        let entry = model.entry(EntryKind::Decode).or_else(|_| model.entry(EntryKind::Encode)).ok()?;
        let ops = &model.file.ops[entry.op_start as usize..(entry.op_start + entry.op_count) as usize];
        let weights = |tensor: u32| match model.file.tensor(tensor)? {
            Tensor::Panels { format, rows, cols, .. } => {
                let each = match format {
                    WeightFormat::F32 | WeightFormat::F16 => return None,
                    WeightFormat::Q8 | WeightFormat::Q8R => self.instructions[0],
                    _ => self.instructions[1],
                };
                Some(rows as f64 * cols as f64 * each)
            }
            _ => None,
        };
        ops.iter()
            .filter_map(|op| match Op::parse(op) {
                Ok(Op::Linear { weight, .. } | Op::ExpertLinear { weight, .. }) => Some(weights(weight)),
                _ => None,
            })
            .sum()
    }
}
