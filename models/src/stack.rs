//! A stack of layers over embeddings: what decoders, encoders and both halves of sequence-to-sequence models are made of.

use lora_runtime::format::{CacheKind, NONE, Operand};
use lora_runtime::program::{BiasKind, EmbedSource, Op};

use crate::block;
use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, NormSpec, Projection};
use crate::layer::Layer;
use crate::policy::Depth;
use crate::rope::Rope;
use crate::spec::{Role, Source};

/// A table of absolute positions.
#[derive(Clone, Debug)]
pub enum Positions {
    /// None.
    None,
    /// A learned table; position 0 is row `offset`.
    Learned {
        /// Module.
        module: &'static str,
        /// Rows.
        rows: usize,
        /// First row used.
        offset: usize,
    },
    /// Sines, then cosines, of `position / 10000^(2i/width)`: computed here.
    Sinusoidal {
        /// Rows.
        rows: usize,
    },
}

/// From token ids to the first hidden states.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// Modules that may hold the word table; the first that the checkpoint has does.
    pub words: &'static [&'static str],
    /// Rows of the word table.
    pub vocab: usize,
    /// Columns of the tables.
    pub width: usize,
    /// Factor of the word embeddings.
    pub scale: f32,
    /// Absolute positions.
    pub positions: Positions,
    /// Token types: module and rows.
    pub types: Option<(&'static str, usize)>,
    /// Norm of the sum.
    pub norm: Option<&'static str>,
    /// Projection of the sum to the hidden size (ELECTRA, ALBERT).
    pub project: Option<&'static str>,
}

impl Embeddings {
    /// Words alone.
    #[must_use]
    pub const fn words(words: &'static [&'static str], vocab: usize, width: usize) -> Self {
        Self { words, vocab, width, scale: 1.0, positions: Positions::None, types: None, norm: None, project: None }
    }
}

/// What the scores of a stack's own attention get added, by distance.
#[derive(Clone, Debug)]
pub enum PositionBias {
    /// Nothing.
    None,
    /// ALiBi: a slope per head.
    Alibi(Vec<f32>),
    /// A learned table of `buckets × heads`, of which `bucket_of[i]` is the bucket of distance `i − bucket_of.len() / 2`
    /// (key position minus query position; distances beyond take the outermost).
    Buckets {
        /// Module of the table.
        module: String,
        /// Rows of the table.
        buckets: usize,
        /// Bucket by distance.
        bucket_of: Vec<usize>,
    },
    /// DeBERTa: a learned vector per bucket, through every layer's own projections, times the query and times the key.
    Disentangled(Disentangled),
}

/// Positions that take part in attention as vectors (He et al. 2021, DeBERTa).
#[derive(Clone, Debug)]
pub struct Disentangled {
    /// Module of the table.
    pub table: &'static str,
    /// Rows of the table.
    pub rows: usize,
    /// Module of the norm of its rows.
    pub norm: Option<&'static str>,
    /// The table's row by distance, as in [`PositionBias::Buckets`].
    pub row_of: Vec<usize>,
    /// Projection, in the layer, of what multiplies the queries.
    pub key: &'static str,
    /// Projection, in the layer, of what multiplies the keys.
    pub query: &'static str,
}

/// A stack.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Prefixes under which its modules may stand, the usual one first.
    pub prefixes: &'static [&'static str],
    /// Hidden size.
    pub hidden: usize,
    /// Embeddings.
    pub embeddings: Embeddings,
    /// All norms.
    pub norm: NormSpec,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Norm of the last hidden states.
    pub final_norm: Option<&'static str>,
    /// Rotary tables that layers refer to.
    pub ropes: Vec<Rope>,
    /// Bias of the scores.
    pub bias: PositionBias,
    /// Longest sequence.
    pub max_positions: usize,
}

/// The bias of a stack's scores as a tensor.
#[derive(Clone, Copy)]
pub struct Bias {
    pub(crate) kind: BiasKind,
    pub(crate) tensor: u32,
}

/// What the layers of a stack share while it is lowered.
pub struct Context<'a> {
    /// The residual stream.
    pub(crate) x: Operand,
    pub(crate) hidden: usize,
    pub(crate) norm: NormSpec,
    /// Rotary tables: value, pairs, whether pairs are neighbours.
    pub(crate) ropes: Vec<(Operand, usize, bool)>,
    pub(crate) bias: Bias,
    /// Vectors of positions, under their prefix.
    pub(crate) disentangled: Option<(&'a Disentangled, String)>,
    /// The cache that all layers use in turn, where keys and values are not kept.
    pub(crate) step_cache: Option<u32>,
    /// Caches of the encoder's keys and values, by layer.
    pub(crate) source_caches: Vec<u32>,
}

impl Stack {
    /// The prefix under which the checkpoint has this stack.
    #[must_use]
    pub fn prefix(&self, g: &Graph<'_>) -> &'static str {
        let has = |p: &&&str| self.embeddings.words.iter().any(|w| g.has(&format!("{p}{w}.weight")));
        self.prefixes.iter().find(has).copied().unwrap_or(self.prefixes[0])
    }

    /// The module of the word table.
    #[must_use]
    pub fn word_module(&self, g: &Graph<'_>, prefix: &str) -> String {
        let words = self.embeddings.words;
        let found = words.iter().find(|w| g.has(&format!("{prefix}{w}.weight"))).or(words.last());
        format!("{prefix}{}", found.copied().unwrap_or_default())
    }

    /// The layers, under a prefix.
    pub(crate) fn layers_under(&self, prefix: &str) -> Vec<Layer> {
        let under = |l: &Layer| Layer { path: format!("{prefix}{}", l.path), ..l.clone() };
        self.layers.iter().map(under).collect()
    }

    /// Lowers embeddings and layers; the value holds the last hidden states before the final norm. With `whole`, the
    /// sequence is seen at once and keys and values are not kept.
    ///
    /// # Errors
    /// Missing or misshapen tensors.
    pub fn lower(
        &self,
        g: &mut Graph<'_>,
        prefix: &str,
        role: Role,
        whole: bool,
        source_caches: Vec<u32>,
    ) -> Result<Operand, ModelError> {
        let x = self.embed(g, prefix, role)?;
        let ropes = self.rotary_tables(g)?;
        let bias = self.position_bias(g, prefix)?;
        let first = &self.layers[0].attention;
        let step_cache = match whole {
            true => Some(g.cache(CacheKind::Step, first.kv_heads, first.head_dim, first.head_dim)?),
            false => None,
        };
        let disentangled = match &self.bias {
            PositionBias::Disentangled(d) => Some((d, prefix.to_owned())),
            _ => None,
        };
        let (hidden, norm) = (self.hidden, self.norm);
        let cx = Context { x, hidden, norm, ropes, bias, disentangled, step_cache, source_caches };
        let layers = self.layers_under(prefix);
        let shared = layers.windows(2).any(|l| l[0].path == l[1].path);
        for (i, layer) in layers.iter().enumerate() {
            let causal = layer.attention.causal;
            // Shared weights have one format, so they belong to no layer in particular.
            g.depth = (!shared).then_some(Depth { layer: i, layers: layers.len(), causal });
            block::layer(g, &cx, layer)?;
        }
        g.depth = None;
        Ok(x)
    }

    /// Applies the final norm to all rows, where there is one.
    ///
    /// # Errors
    /// Missing or misshapen tensors.
    pub fn finish(&self, g: &mut Graph<'_>, prefix: &str, x: Operand) -> Result<(), ModelError> {
        match self.final_norm {
            Some(name) => g.norm(x, x, &format!("{prefix}{name}"), self.hidden, 1, self.norm),
            None => Ok(()),
        }
    }

    fn embed(&self, g: &mut Graph<'_>, prefix: &str, role: Role) -> Result<Operand, ModelError> {
        let e = &self.embeddings;
        let width = e.width as u32;
        let x = g.token_value(e.width)?;
        let table = g.matrix(&self.word_module(g, prefix), e.vocab, e.width, role, "vocab_size, hidden_size")?;
        let slot = g.embed_slot(table);
        g.push(Op::Embed { table, source: EmbedSource::Token, offset: 0, scale: e.scale, out: x, width, slot });
        let positions = match &e.positions {
            Positions::None => None,
            Positions::Learned { module, rows, offset } => {
                let module = format!("{prefix}{module}");
                let field = "max_position_embeddings, hidden_size";
                Some((g.matrix(&module, *rows, e.width, Role::SmallEmbedding, field)?, *offset))
            }
            Positions::Sinusoidal { rows } => {
                let name = format!("positions.{rows}x{}", e.width);
                let table = g.computed_matrix(&name, *rows, sinusoids(*rows, e.width), Role::SmallEmbedding)?;
                Some((table, 0))
            }
        };
        if let Some((table, offset)) = positions {
            self.add_rows(g, x, table, EmbedSource::Position, offset)?;
        }
        if let Some((module, rows)) = e.types {
            let field = "type_vocab_size, hidden_size";
            let table = g.matrix(&format!("{prefix}{module}"), rows, e.width, Role::SmallEmbedding, field)?;
            self.add_rows(g, x, table, EmbedSource::TokenType, 0)?;
        }
        if let Some(name) = e.norm {
            g.norm(x, x, &format!("{prefix}{name}"), e.width, 1, self.norm)?;
        }
        match e.project {
            None => Ok(x),
            Some(name) => {
                let p = Projection::new(format!("{prefix}{name}"), self.hidden, Role::SmallEmbedding).bias(true);
                g.project(&format!("{prefix}{name}"), x, e.width, &[p], Epilogue::default())
            }
        }
    }

    /// `x += table[row]`.
    fn add_rows(
        &self,
        g: &mut Graph<'_>,
        x: Operand,
        table: u32,
        source: EmbedSource,
        offset: usize,
    ) -> Result<(), ModelError> {
        let width = self.embeddings.width as u32;
        let out = g.token_value(self.embeddings.width)?;
        let slot = g.embed_slot(table);
        g.push(Op::Embed { table, source, offset: offset as u32, scale: 1.0, out, width, slot });
        g.push(Op::Add { a: x, b: out, out: x, width, scale: 1.0 });
        Ok(())
    }

    fn rotary_tables(&self, g: &mut Graph<'_>) -> Result<Vec<(Operand, usize, bool)>, ModelError> {
        let used = |i: usize| self.layers.iter().any(|l| l.attention.rope == Some(i));
        let mut tables = Vec::new();
        for (i, r) in self.ropes.iter().enumerate() {
            let half = r.inv_freq.len();
            if !used(i) {
                tables.push((Operand::NONE, half, r.interleaved));
                continue;
            }
            let out = g.token_value(2 * half)?;
            let freqs = g.values(&format!("rope.{i}.inv_freq"), 1, r.inv_freq.clone())?;
            let (long_freqs, threshold) = match &r.long {
                Some(long) => (g.values(&format!("rope.{i}.long_inv_freq"), 1, long.inv_freq.clone())?, long.above),
                None => (NONE, 0),
            };
            g.push(Op::RotaryTable { freqs, long_freqs, threshold, scale: r.scale, out, half: half as u32 });
            tables.push((out, half, r.interleaved));
        }
        Ok(tables)
    }

    fn position_bias(&self, g: &mut Graph<'_>, prefix: &str) -> Result<Bias, ModelError> {
        Ok(match &self.bias {
            PositionBias::None => Bias { kind: BiasKind::None, tensor: NONE },
            PositionBias::Disentangled(d) => {
                let rows = d.row_of.iter().map(|r| *r as f32).collect();
                Bias { kind: BiasKind::Rows, tensor: g.values("rows_by_distance", 1, rows)? }
            }
            PositionBias::Alibi(slopes) => {
                Bias { kind: BiasKind::Alibi, tensor: g.values("alibi.slopes", 1, slopes.clone())? }
            }
            PositionBias::Buckets { module, buckets, bucket_of } => {
                let heads = self.layers[0].attention.heads;
                let name = format!("{prefix}{module}.weight");
                g.expect(&name, &[*buckets, heads], "relative_attention_num_buckets, num_heads")?;
                let index =
                    (0..heads).flat_map(|h| bucket_of.iter().map(move |b| (b * heads + h) as u32)).collect::<Vec<_>>();
                let source = Source::Gather { name, index };
                let tensor = g.gathered(&format!("{prefix}{module}.by_distance"), heads, bucket_of.len(), source)?;
                Bias { kind: BiasKind::Relative, tensor }
            }
        })
    }
}

/// Rows of sines, then cosines, as Marian computes them (in binary64, rounded at the end).
fn sinusoids(rows: usize, width: usize) -> Vec<f32> {
    let half = width.div_ceil(2);
    let angle = |position: usize, i: usize| position as f64 / 10000_f64.powf(2.0 * i as f64 / width as f64);
    (0..rows)
        .flat_map(|p| {
            let sines = (0..half).map(move |i| angle(p, i).sin() as f32);
            sines.chain((0..width - half).map(move |i| angle(p, i).cos() as f32))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_of_position_one() {
        let t = sinusoids(2, 4);
        assert_eq!(t[..4], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(t[4..], [1_f64.sin() as f32, 0.01_f64.sin() as f32, 1_f64.cos() as f32, 0.01_f64.cos() as f32]);
    }
}
