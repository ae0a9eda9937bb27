//! A layer of the decoder: grouped-query attention with rotary positions, and a gated feed-forward block, each after a norm
//! and added to its input; in some architectures what is added is normalised too.

use super::attention::Attention;
use super::config::Config;
use super::executor::{AddNormed, Attend, Buffers, Executor, Heads, Load, Product};
use super::tensors::{Reader, in_layer};
use crate::error::EngineError;

/// A layer's weights.
pub(super) struct Layer<E: Executor> {
    attention_norm: E::Vector,
    query: Projection<E>,
    key: Projection<E>,
    value: Projection<E>,
    query_norm: Option<E::Vector>,
    key_norm: Option<E::Vector>,
    attention_output: Projection<E>,
    attention_post_norm: Option<E::Vector>,
    feed_forward_norm: E::Vector,
    gate: Projection<E>,
    up: Projection<E>,
    down: Projection<E>,
    feed_forward_post_norm: Option<E::Vector>,
    attention: Attention,
    /// Whether the layer turns by the rotary embedding of layers with a window.
    is_local: bool,
}

/// A matrix and, in some models, a bias.
struct Projection<E: Executor> {
    matrix: E::Matrix,
    bias: Option<E::Vector>,
}

/// The rotary embeddings of a model.
pub(super) struct Rotations<R> {
    /// Of all layers, or of those without a window.
    pub(super) global: R,
    /// Of layers with a window, where they have their own.
    pub(super) local: Option<R>,
}

/// What all layers of a step have in common.
pub(super) struct Step<'a, 'r, E: Executor> {
    pub(super) executor: &'a mut E,
    pub(super) config: &'a Config,
    pub(super) rows: &'a E::Rows<'r>,
    pub(super) rotations: &'a Rotations<E::Rotation>,
    pub(super) buffers: &'a mut Buffers<E::Activations>,
}

impl<E: Executor> Layer<E> {
    /// Reads a layer's tensors.
    pub(super) fn read<L: Load<Executor = E>>(
        reader: &mut Reader<'_, '_, L>,
        config: &Config,
        layer: usize,
    ) -> Result<Self, EngineError> {
        let architecture = config.architecture;
        let attention_norm = reader.norm(&in_layer(layer, "attn_norm.weight"))?;
        let [query, key, value] = if architecture.fused {
            Projection::read_fused(reader, layer, "attn_qkv", config.qkv_widths())?
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
            Projection::read_fused(reader, layer, "ffn_up", config.gate_up_widths())?
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
        })
    }

    /// The norm of the layer's input, which whoever makes the input computes.
    pub(super) fn input_norm(&self) -> &E::Vector {
        &self.attention_norm
    }

    /// Runs the layer: `hidden` becomes what it is after it, and `normed`, the norm of its input, that of its output by
    /// `next_norm`, if there is one.
    pub(super) fn run(
        &self,
        step: &mut Step<'_, '_, E>,
        cache: &mut E::Cache,
        next_norm: Option<&E::Vector>,
    ) -> Result<(), EngineError> {
        self.attend(step, cache)?;
        self.feed_forward(step, next_norm)
    }

    /// `hidden += attention(normed)`; the rows' keys and values go into the cache.
    fn attend(&self, step: &mut Step<'_, '_, E>, cache: &mut E::Cache) -> Result<(), EngineError> {
        let Step {
            executor,
            config,
            rows,
            rotations,
            buffers,
        } = step;
        let Buffers {
            hidden,
            normed,
            added,
            query,
            key,
            value,
            attended,
            ..
        } = &mut **buffers;
        executor.project(
            normed,
            [
                self.query.onto(query),
                self.key.onto(key),
                self.value.onto(value),
            ],
        )?;
        let heads = Heads {
            query,
            key,
            value,
            head_dim: config.head_dim,
            query_norm: self.query_norm.as_ref(),
            key_norm: self.key_norm.as_ref(),
            rms_eps: config.rms_eps,
            rotation: match &rotations.local {
                Some(local) if self.is_local => local,
                _ => &rotations.global,
            },
        };
        executor.rotate_and_store(rows, heads, cache)?;
        let attend = Attend {
            attention: self.attention,
            query,
            output: attended,
        };
        executor.attend(rows, cache, attend)?;
        executor.project(attended, [self.attention_output.onto(added)])?;
        executor.add_normed(AddNormed {
            hidden,
            y: added,
            post_norm: self.attention_post_norm.as_ref(),
            next_norm: Some(&self.feed_forward_norm),
            normed,
            rms_eps: config.rms_eps,
        })
    }

    /// `hidden += down(activation(gate(x))·up(x))` with `x = normed`.
    fn feed_forward(
        &self,
        step: &mut Step<'_, '_, E>,
        next_norm: Option<&E::Vector>,
    ) -> Result<(), EngineError> {
        let Step {
            executor,
            config,
            buffers,
            ..
        } = step;
        let Buffers {
            hidden,
            normed,
            added,
            gate,
            up,
            ..
        } = &mut **buffers;
        executor.project(normed, [self.gate.onto(gate), self.up.onto(up)])?;
        executor.gate(config.architecture.activation, gate, up)?;
        executor.project(gate, [self.down.onto(added)])?;
        executor.add_normed(AddNormed {
            hidden,
            y: added,
            post_norm: self.feed_forward_post_norm.as_ref(),
            next_norm,
            normed,
            rms_eps: config.rms_eps,
        })
    }
}

impl<E: Executor> Projection<E> {
    /// The product that goes to `output`.
    fn onto<'a>(&'a self, output: &'a mut E::Activations) -> Product<'a, E> {
        Product {
            matrix: &self.matrix,
            bias: self.bias.as_ref(),
            output,
        }
    }

    fn read<L: Load<Executor = E>>(
        reader: &mut Reader<'_, '_, L>,
        layer: usize,
        name: &str,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            matrix: reader.matrix(&in_layer(layer, &format!("{name}.weight")))?,
            bias: reader.find_vector(&in_layer(layer, &format!("{name}.bias")))?,
        })
    }

    fn read_each<L: Load<Executor = E>, const N: usize>(
        reader: &mut Reader<'_, '_, L>,
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
    fn read_fused<L: Load<Executor = E>, const N: usize>(
        reader: &mut Reader<'_, '_, L>,
        layer: usize,
        name: &str,
        outputs: [usize; N],
    ) -> Result<[Self; N], EngineError> {
        let matrices = reader.matrices(&in_layer(layer, &format!("{name}.weight")), outputs)?;
        Ok(matrices.map(|matrix| Self { matrix, bias: None }))
    }
}
