//! A layer of the Llama decoder: grouped-query attention with rotary positions, and a gated feed-forward block, each after
//! a norm and added to its input.

use super::activation::gated_silu;
use super::attention::{self, Attention, Row};
use super::cache::{CacheShape, Entry, LayerCache};
use super::config::LlamaConfig;
use super::linear::{Linear, Product, multiply};
use super::norm::rms_norm;
use super::rope::rotate;
use super::tensors::{Reader, in_layer};
use crate::error::EngineError;
use crate::kv_cache::BlockId;

/// A layer's weights and its part of the cache.
pub(super) struct Layer {
    attention_norm: Vec<f32>,
    query: Projection,
    key: Projection,
    value: Projection,
    attention_output: Projection,
    feed_forward_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
    cache: LayerCache,
}

/// A matrix and, in some models, a bias.
struct Projection {
    matrix: Linear,
    bias: Option<Vec<f32>>,
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
    /// How far each row's pairs are turned: `[rows, pairs]` of (cos, sin).
    pub(super) rotations: Vec<(f32, f32)>,
    /// One row for each chunk that wants them.
    pub(super) logits: Vec<f32>,
}

impl Buffers {
    /// Makes room for that many rows; what is in the buffers then has no meaning.
    pub(super) fn resize(&mut self, config: &LlamaConfig, rows: usize) {
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
        layer: usize,
        cache_shape: CacheShape,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            attention_norm: reader.vector(&in_layer(layer, "attn_norm.weight"))?,
            query: Projection::read(reader, layer, "attn_q")?,
            key: Projection::read(reader, layer, "attn_k")?,
            value: Projection::read(reader, layer, "attn_v")?,
            attention_output: Projection::read(reader, layer, "attn_output")?,
            feed_forward_norm: reader.vector(&in_layer(layer, "ffn_norm.weight"))?,
            gate: Projection::read(reader, layer, "ffn_gate")?,
            up: Projection::read(reader, layer, "ffn_up")?,
            down: Projection::read(reader, layer, "ffn_down")?,
            cache: LayerCache::new(cache_shape),
        })
    }

    /// `hidden += attention(norm(hidden))`; the rows' keys and values go into the cache.
    pub(super) fn attend(
        &mut self,
        config: &LlamaConfig,
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
            rotations,
            ..
        } = buffers;
        rms_norm(hidden, &self.attention_norm, config.rms_eps, normed);
        project(
            normed,
            [(&self.query, query), (&self.key, key), (&self.value, value)],
        )?;
        rotate_heads(query, config.head_dim, rotations, rows.len());
        rotate_heads(key, config.head_dim, rotations, rows.len());
        self.store(rows, key, value);
        let attention = Attention {
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            soft_cap: None,
            window: None,
        };
        attention::attend(&self.cache, attention, rows, query, attended);
        project(attended, [(&self.attention_output, normed)])?;
        add(hidden, normed);
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

    /// `hidden += down(silu(gate(x))·up(x))` with `x = norm(hidden)`.
    pub(super) fn feed_forward(
        &self,
        config: &LlamaConfig,
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
        gated_silu(gate, up);
        project(gate, [(&self.down, normed)])?;
        add(hidden, normed);
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
}

/// Rotates every head of each row, `[rows, heads, head_dim]`, by the row's position.
fn rotate_heads(states: &mut [f32], head_dim: usize, rotations: &[(f32, f32)], rows: usize) {
    let (width, pairs) = (states.len() / rows, rotations.len() / rows);
    for (row, rotations) in states
        .chunks_exact_mut(width)
        .zip(rotations.chunks_exact(pairs))
    {
        row.chunks_exact_mut(head_dim)
            .for_each(|head| rotate(head, rotations));
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
