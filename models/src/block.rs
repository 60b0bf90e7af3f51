//! From the description of a layer to ops: attention (over the sequence, over an encoder's output) and MLP.

use lora_runtime::format::{CacheKind, NONE, Operand};
use lora_runtime::program::{BiasKind, Op};

use crate::error::ModelError;
use crate::experts;
use crate::graph::{Epilogue, Graph, Projection};
use crate::layer::{Attention, FusedOrder, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::spec::{Product, Role, RowMap};
use crate::stack::{Bias, Context, Disentangled};

/// The heads' columns in a query, key and value projection.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Part {
    const fn role(self) -> Role {
        match self {
            Self::Query => Role::Query,
            Self::Key => Role::Key,
            Self::Value => Role::Value,
        }
    }
}

impl Attention {
    const fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// One of the three projections.
    fn projection(&self, layer: &Layer, part: Part) -> Projection {
        let rows = if matches!(part, Part::Query) { self.q_width() } else { self.kv_width() };
        let (name, map) = match (self.qkv, part) {
            (Qkv::Separate { q, .. }, Part::Query) => (q, None),
            (Qkv::Separate { k, .. }, Part::Key) => (k, None),
            (Qkv::Separate { v, .. }, Part::Value) => (v, None),
            (Qkv::Fused { module, order }, part) => (module, Some(self.fused_rows(order, part))),
        };
        Projection {
            module: format!("{}.{name}", layer.path),
            rows,
            part: map,
            bias: Some(self.qkv_bias),
            transpose: layer.transpose,
            role: part.role(),
        }
    }

    /// Where a part's rows stand in the fused matrix.
    fn fused_rows(&self, order: FusedOrder, part: Part) -> RowMap {
        let (d, shared) = (self.head_dim, self.heads / self.kv_heads);
        match order {
            FusedOrder::Blocks => match part {
                Part::Query => RowMap::range(0, self.q_width()),
                Part::Key => RowMap::range(self.q_width(), self.kv_width()),
                Part::Value => RowMap::range(self.q_width() + self.kv_width(), self.kv_width()),
            },
            FusedOrder::Groups => {
                let (start, block) = match part {
                    Part::Query => (0, shared * d),
                    Part::Key => (shared * d, d),
                    Part::Value => ((shared + 1) * d, d),
                };
                RowMap { start, block, stride: (shared + 2) * d, count: self.kv_heads }
            }
        }
    }

    /// Name of the fused projection, for reports.
    fn fused_name(&self, layer: &Layer) -> String {
        let name = match self.qkv {
            Qkv::Separate { q, .. } => q,
            Qkv::Fused { module, .. } => module,
        };
        let parent = name.rsplit_once('.').map_or(String::new(), |(parent, _)| format!(".{parent}"));
        format!("{}{parent}.qkv", layer.path)
    }
}

impl Mlp {
    /// The matrices that read the input, and the name of all of them together.
    pub(crate) fn first_matrices(&self, path: &str, transpose: bool) -> (String, Vec<Projection>) {
        let projection = |name: &str, role, part| Projection {
            module: format!("{path}.{name}"),
            rows: self.inner,
            part,
            bias: Some(self.bias),
            transpose,
            role,
        };
        match self.kind {
            MlpKind::Plain { up, .. } => {
                let up = projection(up, Role::Up, None);
                (up.module.clone(), vec![up])
            }
            MlpKind::Gated { gate, up, .. } => {
                let parent = gate.rsplit_once('.').map_or(String::new(), |(parent, _)| format!(".{parent}"));
                let list = vec![projection(gate, Role::Gate, None), projection(up, Role::Up, None)];
                (format!("{path}{parent}.gate_up"), list)
            }
            MlpKind::GatedFused { gate_up, .. } => {
                let half = |first| Some(RowMap::range(first, self.inner));
                let list =
                    vec![projection(gate_up, Role::Gate, half(0)), projection(gate_up, Role::Up, half(self.inner))];
                (format!("{path}.{gate_up}"), list)
            }
        }
    }
}

/// Lowers a layer over the residual stream `cx.x`.
///
/// # Errors
/// Missing or misshapen tensors.
pub fn layer(g: &mut Graph<'_>, cx: &Context<'_>, layer: &Layer) -> Result<(), ModelError> {
    if layer.parallel {
        // Both inputs are taken before either output is added.
        let input = normed(g, cx, layer, layer.attention.norms)?;
        let same = layer.mlp.norms.input == layer.attention.norms.input;
        let mlp_input = if same { input } else { normed(g, cx, layer, layer.mlp.norms)? };
        self_attention(g, cx, layer, input)?;
        return mlp(g, cx, layer, mlp_input);
    }
    let input = normed(g, cx, layer, layer.attention.norms)?;
    self_attention(g, cx, layer, input)?;
    if let Some(cross) = &layer.cross {
        let input = normed(g, cx, layer, cross.norms)?;
        cross_attention(g, cx, layer, cross, input)?;
    }
    let input = normed(g, cx, layer, layer.mlp.norms)?;
    mlp(g, cx, layer, input)
}

/// The input of a sublayer: the residual stream, normed where the sublayer wants it so.
fn normed(g: &mut Graph<'_>, cx: &Context<'_>, layer: &Layer, norms: Norms) -> Result<Operand, ModelError> {
    let Some(name) = norms.input else { return Ok(cx.x) };
    let h = g.token_value(cx.hidden)?;
    g.norm(cx.x, h, &format!("{}.{name}", layer.path), cx.hidden, 1, cx.norm)?;
    Ok(h)
}

/// Adds a sublayer's last projection to the residual stream, with the norms that follow it.
pub(crate) fn add_to_stream(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    norms: Norms,
    (input, cols): (Operand, usize),
    projection: Projection,
) -> Result<(), ModelError> {
    if norms.output.is_some() {
        let name = projection.module.clone();
        let y = g.project(&name, input, cols, &[projection], Epilogue::default())?;
        return add_value(g, cx, layer, norms, y);
    }
    g.project_residual(input, cols, projection, layer.residual, cx.x)?;
    sum_norm(g, cx, layer, norms)
}

/// Adds a value to the residual stream, with the norms that precede and follow the sum.
pub(crate) fn add_value(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    norms: Norms,
    y: Operand,
) -> Result<(), ModelError> {
    if let Some(name) = norms.output {
        g.norm(y, y, &format!("{}.{name}", layer.path), cx.hidden, 1, cx.norm)?;
    }
    g.push(Op::Add { a: cx.x, b: y, out: cx.x, width: cx.hidden as u32, scale: layer.residual });
    sum_norm(g, cx, layer, norms)
}

fn sum_norm(g: &mut Graph<'_>, cx: &Context<'_>, layer: &Layer, norms: Norms) -> Result<(), ModelError> {
    match norms.sum {
        Some(name) => g.norm(cx.x, cx.x, &format!("{}.{name}", layer.path), cx.hidden, 1, cx.norm),
        None => Ok(()),
    }
}

fn self_attention(g: &mut Graph<'_>, cx: &Context<'_>, layer: &Layer, input: Operand) -> Result<(), ModelError> {
    let a = &layer.attention;
    let list = [Part::Query, Part::Key, Part::Value].map(|part| a.projection(layer, part));
    let q = g.project(&a.fused_name(layer), input, cx.hidden, &list, Epilogue::default())?;
    let k = Graph::columns(q, a.q_width());
    let v = Graph::columns(k, a.kv_width());
    norm_and_rotate(g, cx, layer, q, k)?;
    let cache = match cx.step_cache {
        Some(cache) => cache,
        None => g.cache(CacheKind::Context, a.kv_heads, a.head_dim, a.head_dim)?,
    };
    g.push(Op::KvStore { k, v, cache });
    let rows = match &cx.disentangled {
        Some((d, prefix)) => distance_rows(g, cx, layer, (d, prefix), q, k)?,
        None => Rows::NONE,
    };
    attend(g, cx, layer, a, q, cache, cx.bias, rows)
}

/// Biases that tokens bring along, by distance.
#[derive(Clone, Copy)]
struct Rows {
    at: Operand,
    entries: u32,
}

impl Rows {
    const NONE: Self = Self { at: Operand::NONE, entries: 0 };
}

/// Queries and keys times the projected vectors of all distances. The vectors are the model's own, so their projections
/// are computed while packing; what is left is a matrix for every head.
fn distance_rows(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    (d, prefix): (&Disentangled, &str),
    q: Operand,
    k: Operand,
) -> Result<Rows, ModelError> {
    let a = &layer.attention;
    let table = format!("{prefix}{}.weight", d.table);
    g.expect(&table, &[d.rows, cx.hidden], "position_buckets, hidden_size")?;
    let norm = d.norm.map(|n| (format!("{prefix}{n}.weight"), format!("{prefix}{n}.bias"), cx.norm.eps));
    let out = g.token_value(2 * a.heads * d.rows)?;
    for (side, (x, by)) in [(q, d.key), (k, d.query)].into_iter().enumerate() {
        let module = format!("{}.{by}", layer.path);
        g.expect(&format!("{module}.weight"), &[a.q_width(), cx.hidden], "hidden_size")?;
        g.expect(&format!("{module}.bias"), &[a.q_width()], "hidden_size")?;
        for head in 0..a.heads {
            let source = Product {
                table: table.clone(),
                norm: norm.clone(),
                matrix: format!("{module}.weight"),
                bias: format!("{module}.bias"),
                outputs: (head * a.head_dim, a.head_dim),
                factor: a.scale as f32,
            };
            let name = format!("{module}.distances.{head}");
            let (weight, slot) = g.product(&name, d.rows, source)?;
            g.push(Op::Linear {
                a: Graph::columns(x, head * a.head_dim),
                out: Graph::columns(out, (side * a.heads + head) * d.rows),
                residual: Operand::NONE,
                weight,
                bias: NONE,
                act: lora_runtime::kernels::Act::None,
                scale: 1.0,
                width: d.rows as u32,
                slot,
            });
        }
    }
    Ok(Rows { at: out, entries: d.rows as u32 })
}

/// Norms of queries and keys, then rotation.
fn norm_and_rotate(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    q: Operand,
    k: Operand,
) -> Result<(), ModelError> {
    let a = &layer.attention;
    if let Some(n) = a.qk_norm {
        for (at, name, heads) in [(q, n.q, a.heads), (k, n.k, a.kv_heads)] {
            let (width, groups) = if n.per_head { (a.head_dim, heads) } else { (heads * a.head_dim, 1) };
            g.norm(at, at, &format!("{}.{name}", layer.path), width, groups, cx.norm)?;
        }
    }
    if let Some((table, half, interleaved)) = a.rope.map(|i| cx.ropes[i]) {
        for (x, heads) in [(q, a.heads), (k, a.kv_heads)] {
            g.push(Op::Rotary {
                x,
                table,
                heads: heads as u32,
                head_dim: a.head_dim as u32,
                half: half as u32,
                interleaved,
            });
        }
    }
    Ok(())
}

fn cross_attention(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    a: &Attention,
    input: Operand,
) -> Result<(), ModelError> {
    let query = a.projection(layer, Part::Query);
    let name = query.module.clone();
    let q = g.project(&name, input, cx.hidden, &[query], Epilogue::default())?;
    let index = g.depth.map_or(0, |d| d.layer);
    let bias = Bias { kind: BiasKind::None, tensor: NONE };
    attend(g, cx, layer, a, q, cx.source_caches[index], bias, Rows::NONE)
}

/// Keys and values of an encoder's output `source` for the cross attention of `layer`, stored in a cache of their own.
///
/// # Errors
/// Missing or misshapen tensors.
pub fn store_source(
    g: &mut Graph<'_>,
    layer: &Layer,
    a: &Attention,
    source: Operand,
    width: usize,
) -> Result<u32, ModelError> {
    let list = [Part::Key, Part::Value].map(|part| a.projection(layer, part));
    let name = a.fused_name(layer).replace(".qkv", ".kv");
    let k = g.project(&name, source, width, &list, Epilogue::default())?;
    let cache = g.cache(CacheKind::Source, a.kv_heads, a.head_dim, a.head_dim)?;
    g.push(Op::KvStore { k, v: Graph::columns(k, a.kv_width()), cache });
    Ok(cache)
}

#[allow(clippy::too_many_arguments, reason = "what differs between attention over the sequence and over an encoder")]
fn attend(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    layer: &Layer,
    a: &Attention,
    q: Operand,
    cache: u32,
    bias: Bias,
    rows: Rows,
) -> Result<(), ModelError> {
    let out = g.token_value(a.q_width())?;
    g.push(Op::Attention {
        q,
        out,
        cache,
        heads: a.heads as u32,
        scale: a.scale as f32,
        softcap: a.softcap,
        window: a.window as u32,
        causal: a.causal,
        bias_kind: bias.kind,
        bias: bias.tensor,
        rows: rows.at,
        entries: rows.entries,
    });
    let projection = Projection {
        transpose: layer.transpose,
        ..Projection::new(format!("{}.{}", layer.path, a.out), cx.hidden, Role::AttentionOut).bias(a.out_bias)
    };
    add_to_stream(g, cx, layer, a.norms, (out, a.q_width()), projection)
}

fn mlp(g: &mut Graph<'_>, cx: &Context<'_>, layer: &Layer, input: Operand) -> Result<(), ModelError> {
    let m = &layer.mlp;
    if let Some(e) = &m.experts {
        return experts::mixture(g, cx, layer, e, input);
    }
    let h = inner(g, cx, &layer.path, m, layer.transpose, input)?;
    let down = m.kind.down();
    let projection = Projection {
        transpose: layer.transpose,
        ..Projection::new(format!("{}.{down}", layer.path), cx.hidden, Role::Down).bias(m.bias)
    };
    add_to_stream(g, cx, layer, m.norms, (h, m.inner), projection)
}

/// The inner activations of a dense MLP.
pub(crate) fn inner(
    g: &mut Graph<'_>,
    cx: &Context<'_>,
    path: &str,
    m: &Mlp,
    transpose: bool,
    input: Operand,
) -> Result<Operand, ModelError> {
    let (name, list) = m.first_matrices(path, transpose);
    if let MlpKind::Plain { .. } = m.kind {
        return g.project(&name, input, cx.hidden, &list, Epilogue { act: m.act, scale: 1.0 });
    }
    let gate = g.project(&name, input, cx.hidden, &list, Epilogue::default())?;
    let out = g.token_value(m.inner)?;
    g.push(Op::Gated { gate, up: Graph::columns(gate, m.inner), out, width: m.inner as u32, act: m.act });
    Ok(out)
}
