//! How fast a processor runs a model, and what firmware takes beside it: estimates from what `tests/firmware/measure` and
//! `tests/machine_code/kernels --cycles` print.

use lora_runtime::Model;
use lora_runtime::format::{EntryKind, Tensor};
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

/// Formats of the demo model that costs were measured with: of 8 bits, of fewer, `f16`, `f32`.
pub const MEASURED: [&str; 4] = ["q8", "q4", "f16", "f32"];

/// A processor.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What firmware takes; `None` for processors that run `lora-run` under Linux.
    pub firmware: Option<Firmware>,
    /// What a weight costs, by [`MEASURED`].
    costs: [Cost; 4],
}

/// What firmware takes beside the file and the arena.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    /// Code and constants of the classifier of `tests/firmware`, the larger of its programs.
    pub code_bytes: u64,
    /// Most stack that one of the programs of `tests/firmware` used, its text buffer included.
    pub stack_bytes: u64,
}

/// What a weight costs for each token.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Executed instructions, everything else of the step included.
    instructions: f64,
    /// Cycles of an instruction.
    cycles: f64,
}

/// What a token of a model costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Executed instructions.
    pub instructions: f64,
    /// Cycles of one core, where memory keeps up.
    pub cycles: f64,
    /// Bytes of matrices that are read.
    pub bytes: u64,
}

impl Work {
    /// Tokens in a second at so many MHz, where memory delivers so many GB/s.
    #[must_use]
    pub fn tokens_per_second(&self, clock: f64, bandwidth: Option<f64>) -> f64 {
        let memory = bandwidth.map_or(0.0, |gigabytes| self.bytes as f64 / (gigabytes * 1e9));
        1.0 / memory.max(self.cycles / (clock * 1e6))
    }
}

const fn costs(instructions: [f64; 4], cycles: [f64; 4]) -> [Cost; 4] {
    let mut costs = [Cost { instructions: 0.0, cycles: 0.0 }; 4];
    let mut i = 0;
    while i < 4 {
        costs[i] = Cost { instructions: instructions[i], cycles: cycles[i] };
        i += 1;
    }
    costs
}

/// Cortex-M with the DSP extension; an instruction counts as a cycle.
const fn cortex_m(name: &'static str, instructions: [f64; 4]) -> Target {
    // Rounded up; `.ci/run firmware` compares them with the programs.
    let firmware = Firmware { code_bytes: 138_000, stack_bytes: 23_000 };
    Target { name, firmware: Some(firmware), costs: costs(instructions, [1.0; 4]) }
}

/// A processor under Linux. Cycles of an instruction: those of the loop over one token's weights.
const fn linux(name: &'static str, instructions: [f64; 4], cycles: [f64; 4]) -> Target {
    Target { name, firmware: None, costs: costs(instructions, cycles) }
}

/// What there are numbers for: those of `tests/firmware/measure`, which compares them. (llvm-mca knows a Cortex-A76 as Neoverse N1.)
pub const TARGETS: [Target; 7] = [
    cortex_m("cortex-m4", [5.36, 5.85, 12.32, 9.54]),
    cortex_m("cortex-m7", [5.36, 5.85, 12.32, 9.54]),
    cortex_m("cortex-m33", [5.36, 5.93, 12.32, 9.54]),
    cortex_m("cortex-m55", [2.89, 4.66, 12.32, 9.57]),
    linux("cortex-a53", [0.42, 0.57, 1.26, 1.01], [1.23, 1.13, 1.42, 1.72]),
    linux("cortex-a72", [0.42, 0.57, 1.26, 1.01], [0.54, 0.64, 0.90, 0.89]),
    linux("cortex-a76", [0.29, 0.46, 1.26, 1.01], [0.59, 0.38, 0.60, 0.57]),
];

impl Target {
    /// Executed instructions for a weight of a format of [`MEASURED`].
    #[must_use]
    pub const fn instructions(&self, measured: usize) -> f64 {
        self.costs[measured].instructions
    }

    /// The target of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|t| t.name == name)
    }

    /// What one token of a model costs: of a decoder with its logits, of an encoder a token of its input. Attention grows
    /// with the context and counts as it is in short ones.
    #[must_use]
    pub fn work(&self, model: &Model<'_>) -> Work {
        let entry = model.entry(EntryKind::Decode).or_else(|_| model.entry(EntryKind::Encode));
        let ops = entry.ok().and_then(|e| model.file.ops.get(e.op_start as usize..(e.op_start + e.op_count) as usize));
        let mut work = Work::default();
        for op in ops.unwrap_or_default() {
            if let Ok(Op::Linear { weight, .. } | Op::ExpertLinear { weight, .. }) = Op::parse(op)
                && let Some(Tensor::Panels { format, rows, cols, data }) = model.file.tensor(weight)
            {
                let cost = self.costs[match format {
                    WeightFormat::Q8 | WeightFormat::Q8R => 0,
                    WeightFormat::F16 => 2,
                    WeightFormat::F32 => 3,
                    _ => 1,
                }];
                let instructions = rows as f64 * cols as f64 * cost.instructions;
                work.instructions += instructions;
                work.cycles += instructions * cost.cycles;
                work.bytes += data.len() as u64;
            }
        }
        work
    }
}
