//! A layer of the decoder: grouped-query attention with rotary positions, and a gated feed-forward block, each after a norm
//! and added to its input; in some architectures what is added is normalised too.

use super::activation::gated;
use super::attention::{self, Attention, Row};
use super::cache::{CacheShape, Entry, LayerCache};
use super::config::Config;
use super::linear::{Linear, Product, multiply};
use super::norm::{rms_norm, rms_norm_in_place};
use super::rope::Rope;
use super::tensors::{Reader, in_layer};
use crate::error::EngineError;
use crate::kv_cache::BlockId;

/// A layer's weights and its part of the cache.
pub(super) struct Layer {
    attention_norm: Vec<f32>,
    query: Projection,
    key: Projection,
    value: Projection,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    attention_output: Projection,
    attention_post_norm: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
    feed_forward_post_norm: Option<Vec<f32>>,
    attention: Attention,
    /// Whether the layer turns by the rotary embedding of layers with a window.
    is_local: bool,
    cache: LayerCache,
}

/// A matrix and, in some models, a bias.
struct Projection {
    matrix: Linear,
    bias: Option<Vec<f32>>,
}

/// A rotary embedding, and how far it turns each row's pairs: `[rows, pairs]` of (cos, sin).
pub(super) struct Rotation {
    rope: Rope,
    rotations: Vec<(f32, f32)>,
}

impl Rotation {
    /// No rows yet.
    pub(super) fn new(rope: Rope) -> Self {
        Self {
            rope,
            rotations: Vec::new(),
        }
    }

    /// Computes the rotations of a step's rows.
    pub(super) fn turn_to(&mut self, rows: &[Row<'_>]) {
        let positions = rows.iter().map(|row| row.position);
        self.rope.rotations(positions, &mut self.rotations);
    }
}

/// The rotary embeddings of a model.
pub(super) struct Rotations {
    /// Of all layers, or of those without a window.
    pub(super) global: Rotation,
    /// Of layers with a window, where they have their own.
    pub(super) local: Option<Rotation>,
}

/// Activations of a step, kept from step to step: `[rows, width]` each.
#[derive(Default)]
pub(super) struct Buffers {
    /// The residual stream.
    pub(super) hidden: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// One row for each chunk that wants them.
    pub(super) logits: Vec<f32>,
}

impl Buffers {
    /// Makes room for that many rows; what is in the buffers then has no meaning.
    pub(super) fn resize(&mut self, config: &Config, rows: usize) {
        for (buffer, width) in [
            (&mut self.hidden, config.hidden),
            (&mut self.normed, config.hidden),
            (&mut self.query, config.query_width()),
            (&mut self.key, config.kv_width()),
            (&mut self.value, config.kv_width()),
            (&mut self.attended, config.query_width()),
            (&mut self.gate, config.feed_forward),
            (&mut self.up, config.feed_forward),
        ] {
            buffer.resize(rows * width, 0.0);
        }
    }
}

impl Layer {
    /// Reads a layer's tensors.
    pub(super) fn read(
        reader: &mut Reader<'_, '_>,
        config: &Config,
        layer: usize,
        cache_shape: CacheShape,
    ) -> Result<Self, EngineError> {
        let architecture = config.architecture;
        let attention_norm = reader.norm(&in_layer(layer, "attn_norm.weight"))?;
        let [query, key, value] = if architecture.fused {
            let widths = [config.query_width(), config.kv_width(), config.kv_width()];
            Projection::read_fused(reader, layer, "attn_qkv", widths)?
        } else {
            Projection::read_each(reader, layer, ["attn_q", "attn_k", "attn_v"])?
        };
        let query_norm = reader.norm_if(architecture.head_norms, layer, "attn_q_norm.weight")?;
        let key_norm = reader.norm_if(architecture.head_norms, layer, "attn_k_norm.weight")?;
        let attention_output = Projection::read(reader, layer, "attn_output")?;
        let attention_post_norm =
            reader.norm_if(architecture.post_norms, layer, "post_attention_norm.weight")?;
        let feed_forward_norm = reader.norm(&in_layer(layer, "ffn_norm.weight"))?;
        let [gate, up] = if architecture.fused {
            Projection::read_fused(reader, layer, "ffn_up", [config.feed_forward; 2])?
        } else {
            Projection::read_each(reader, layer, ["ffn_gate", "ffn_up"])?
        };
        Ok(Self {
            attention_norm,
            query,
            key,
            value,
            query_norm,
            key_norm,
            attention_output,
            attention_post_norm,
            feed_forward_norm,
            gate,
            up,
            down: Projection::read(reader, layer, "ffn_down")?,
            feed_forward_post_norm: reader.norm_if(
                architecture.post_norms,
                layer,
                "post_ffw_norm.weight",
            )?,
            attention: config.attention(layer),
            is_local: config.window_of(layer).is_some(),
            cache: LayerCache::new(cache_shape),
        })
    }

    /// `hidden += attention(norm(hidden))`; the rows' keys and values go into the cache.
    pub(super) fn attend(
        &mut self,
        config: &Config,
        rotations: &Rotations,
        rows: &[Row<'_>],
        buffers: &mut Buffers,
    ) -> Result<(), EngineError> {
        let Buffers {
            hidden,
            normed,
            query,
            key,
            value,
            attended,
            ..
        } = buffers;
        rms_norm(hidden, &self.attention_norm, config.rms_eps, normed);
        project(
            normed,
            [(&self.query, query), (&self.key, key), (&self.value, value)],
        )?;
        let Rotation { rope, rotations } = match &rotations.local {
            Some(local) if self.is_local => local,
            _ => &rotations.global,
        };
        for (states, norm) in [(&mut *query, &self.query_norm), (&mut *key, &self.key_norm)] {
            if let Some(norm) = norm {
                rms_norm_in_place(states, norm, config.rms_eps);
            }
            rope.rotate(states, config.head_dim, rotations);
        }
        self.store(rows, key, value);
        attention::attend(&self.cache, self.attention, rows, query, attended);
        project(attended, [(&self.attention_output, normed)])?;
        add_normed(
            hidden,
            normed,
            self.attention_post_norm.as_deref(),
            config.rms_eps,
        );
        Ok(())
    }

    /// Copies a block of the cache into another.
    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) {
        self.cache.copy_block(from, to);
    }

    /// Writes each row's key and value into the cache.
    fn store(&mut self, rows: &[Row<'_>], keys: &[f32], values: &[f32]) {
        let width = keys.len() / rows.len();
        let entries = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (row, (keys, values)) in rows.iter().zip(entries) {
            self.cache
                .write(row.blocks, row.position, Entry { keys, values });
        }
    }

    /// `hidden += down(activation(gate(x))·up(x))` with `x = norm(hidden)`.
    pub(super) fn feed_forward(
        &self,
        config: &Config,
        buffers: &mut Buffers,
    ) -> Result<(), EngineError> {
        let Buffers {
            hidden,
            normed,
            gate,
            up,
            ..
        } = buffers;
        rms_norm(hidden, &self.feed_forward_norm, config.rms_eps, normed);
        project(normed, [(&self.gate, &mut *gate), (&self.up, &mut *up)])?;
        gated(config.architecture.activation, gate, up);
        project(gate, [(&self.down, normed)])?;
        add_normed(
            hidden,
            normed,
            self.feed_forward_post_norm.as_deref(),
            config.rms_eps,
        );
        Ok(())
    }
}

impl Projection {
    fn read(reader: &mut Reader<'_, '_>, layer: usize, name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            matrix: reader.linear(&in_layer(layer, &format!("{name}.weight")))?,
            bias: reader.find_vector(&in_layer(layer, &format!("{name}.bias")))?,
        })
    }

    fn read_each<const N: usize>(
        reader: &mut Reader<'_, '_>,
        layer: usize,
        names: [&str; N],
    ) -> Result<[Self; N], EngineError> {
        let mut read = Vec::with_capacity(N);
        for name in names {
            read.push(Self::read(reader, layer, name)?);
        }
        Ok(read
            .try_into()
            .unwrap_or_else(|_| unreachable!("one projection for each name")))
    }

    /// Projections that are one matrix in the file, one below the other.
    fn read_fused<const N: usize>(
        reader: &mut Reader<'_, '_>,
        layer: usize,
        name: &str,
        outputs: [usize; N],
    ) -> Result<[Self; N], EngineError> {
        let matrices = reader.linears(&in_layer(layer, &format!("{name}.weight")), outputs)?;
        Ok(matrices.map(|matrix| Self { matrix, bias: None }))
    }
}

/// `output = input · matrixᵀ + bias` for projections of the same input.
fn project<const N: usize>(
    input: &[f32],
    projections: [(&Projection, &mut Vec<f32>); N],
) -> Result<(), EngineError> {
    let mut products = Vec::with_capacity(N);
    let mut biases = Vec::new();
    for (projection, output) in projections {
        products.push(Product {
            matrix: &projection.matrix,
            output,
        });
        biases.push(projection.bias.as_ref());
    }
    multiply(input, &mut products)?;
    for (product, bias) in products.iter_mut().zip(biases) {
        if let Some(bias) = bias {
            product
                .output
                .chunks_exact_mut(bias.len())
                .for_each(|row| add(row, bias));
        }
    }
    Ok(())
}

/// `x += y`.
fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x += y`, with `y` normalised first where there is a norm for it.
fn add_normed(x: &mut [f32], y: &mut [f32], norm: Option<&[f32]>, rms_eps: f32) {
    if let Some(norm) = norm {
        rms_norm_in_place(y, norm, rms_eps);
    }
    add(x, y);
}
