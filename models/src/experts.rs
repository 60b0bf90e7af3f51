//! Mixtures of experts: a router's scores, and the experts that a token takes, one slot after the other.
//!
//! Slot `j` of a token is its `j`-th expert by number. A slot is an MLP whose matrices depend on the token, so the memory
//! of one slot serves all of them, and a device reads only the experts that are taken.

use lora_runtime::format::Operand;
use lora_runtime::kernels::Act;
use lora_runtime::program::Op;

use crate::block::{add_value, inner};
use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, Projection};
use crate::layer::{Experts, Layer, Mlp, MlpKind};
use crate::spec::Role;
use crate::stack::Context;

/// Lowers a mixture over `input` and adds it to the residual stream.
///
/// # Errors
/// Missing or misshapen tensors.
pub(crate) fn mixture(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    e: &Experts,
    input: Operand,
) -> Result<(), ModelError> {
    let m = &layer.mlp;
    let router = Projection::new(format!("{}.{}", layer.path, e.router), e.count, Role::Router).bias(false);
    let name = router.module.clone();
    let route = g.project(&name, input, cx.hidden, &[router], Epilogue::default())?;
    g.push(Op::Route { a: route, out: route, width: e.count as u32, chosen: e.chosen as u32, normalize: e.normalize });
    let path = |i| format!("{}.{}.{i}", layer.path, e.module);
    let first = (0..e.count).map(|i| m.first_matrices(&path(i), layer.transpose)).collect::<Vec<_>>();
    let first = g.expert_matrices(cx.hidden, &first)?;
    let second = (0..e.count).map(|i| second_matrix(&path(i), m.kind, cx.hidden, layer.transpose)).collect::<Vec<_>>();
    let second = g.expert_matrices(m.inner, &second)?;
    let y = g.token_value(cx.hidden)?;
    for slot in 0..e.chosen {
        let plain = matches!(m.kind, MlpKind::Plain { .. });
        let h = g.token_value(if plain { m.inner } else { 2 * m.inner })?;
        let choice = Choice { route, experts: e.count, slot };
        g.expert_linear(input, h, first, choice, ExpertSum { weighted: false, add: false })?;
        let (out, width, act) = (g.token_value(m.inner)?, m.inner as u32, m.act);
        g.push(match plain {
            true => Op::Activation { a: h, out, width, act },
            false => Op::Gated { gate: h, up: Graph::columns(h, m.inner), out, width, act },
        });
        g.expert_linear(out, y, second, choice, ExpertSum { weighted: true, add: slot > 0 })?;
    }
    if let Some(s) = &e.shared {
        let shared = Mlp { kind: s.kind, inner: s.inner, experts: None, ..*m };
        let gate = Projection::new(format!("{}.{}", layer.path, s.gate), 1, Role::Router).bias(false);
        let name = gate.module.clone();
        let route = g.project(&name, input, cx.hidden, &[gate], Epilogue { act: Act::Sigmoid, scale: 1.0 })?;
        let h = inner(g, cx, &layer.path, &shared, layer.transpose, input)?;
        let second = g.expert_matrices(s.inner, &[second_matrix(&layer.path, s.kind, cx.hidden, layer.transpose)])?;
        let choice = Choice { route, experts: 1, slot: 0 };
        g.expert_linear(h, y, second, choice, ExpertSum { weighted: true, add: true })?;
    }
    add_value(g, cx, layer, m.norms, y)
}

fn second_matrix(path: &str, kind: MlpKind, hidden: usize, transpose: bool) -> (String, Vec<Projection>) {
    let down =
        Projection { transpose, ..Projection::new(format!("{path}.{}", kind.down()), hidden, Role::Down).bias(false) };
    (down.module.clone(), vec![down])
}

/// Which expert of a row a linear takes.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Weights of the experts.
    pub route: Operand,
    /// How many there are.
    pub experts: usize,
    /// Which of those with a weight.
    pub slot: usize,
}

/// What becomes of an expert's product.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSum {
    /// It is multiplied by the expert's weight.
    pub weighted: bool,
    /// It is added to the output.
    pub add: bool,
}
