//! The memory of a device that a model takes, counted before anything is allocated.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::quantized::GgmlDType;
use nucleus_sampling::cuda::{DeviceInfo, DeviceMemory};

use super::super::Checked;
use super::super::cache::BLOCK_SIZE;
use super::super::config::Config;
use super::super::error::{DeviceShortage, ModelError};
use super::super::executor::{Buffers, Width};
use super::super::tensors::{self, Part};
use super::super::weights::Weights;
use super::step::{Shape, bucket, most_words};
use super::{CudaOptions, held_kind};
use crate::cuda::{
    Arena, Kind, attention_workspace, cache_block_bytes, linear_workspace, matrix_bytes,
};
use crate::kv_cache::blocks_for;

/// Of the free memory, what a model may take: the rest is for graphs, the sampler and the driver.
const SHARE: f64 = 0.9;
/// Most rows whose logits are had at once, of a step that may have more rows.
const MOST_LOGIT_ROWS: usize = 512;
/// Positions that a cache must have room for at least, or one context, if that is shorter.
const LEAST_KV_TOKENS: usize = 256;
/// Widest rows that norms take.
const MOST_NORM_WIDTH: usize = 16_384;
/// Most query heads of a key head.
const MOST_HEADS_PER_KV_HEAD: usize = 16;

/// What a model takes of a device's memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// The device's name.
    pub device: String,
    /// Memory that nothing used when the plan was made.
    pub free_bytes: u64,
    /// Memory in all.
    pub total_bytes: u64,
    /// The weights, as they are held.
    pub weights_bytes: u64,
    /// Types that the kernels do not compute with, and what is made of them when they are loaded.
    pub converted: Vec<Converted>,
    /// Activations and logits of a step, rotations and what describes its rows.
    pub activations_bytes: u64,
    /// Of the matrix products and attention.
    pub workspace_bytes: u64,
    /// The largest matrix as it is in the file, while weights are loaded; then the cache takes its place.
    pub staging_bytes: u64,
    /// Blocks of the cache that sequences can have.
    pub kv_blocks: usize,
    /// The cache, with one block beside those.
    pub kv_bytes: u64,
    /// Most rows of a step.
    pub step_rows: usize,
    /// Most rows of a step whose logits can be had.
    pub logit_rows: usize,
    /// Most sequences of a step.
    pub sequences: usize,
}

/// Weights that are held in another type than in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The type in the file.
    pub from: String,
    /// The type that is held: F16, or BF16 of matrices with numbers beyond ±65,504.
    pub to: &'static str,
    /// Matrices.
    pub matrices: usize,
    /// What they take, as they are held.
    pub bytes: u64,
}

impl DevicePlan {
    /// The plan for a checked model.
    ///
    /// # Errors
    /// [`ModelError::DeviceShape`] if the kernels do not take the model's shape, [`ModelError::DeviceMemory`] if the memory does not suffice.
    pub(super) fn new(
        weights: Weights<'_>,
        checked: &Checked,
        options: &CudaOptions,
        device: (&DeviceInfo, DeviceMemory),
    ) -> Result<Self, ModelError> {
        let Checked { config, spec } = checked;
        check_shape(config)?;
        let parts = tensors::parts(weights, config);
        // Steps in which all sequences decode a token may be filled up with rows, all of which have logits.
        let decoding = bucket(options.sequences).unwrap_or(options.sequences);
        let step_rows = options.step_rows.max(decoding);
        let logit_rows = step_rows.min(MOST_LOGIT_ROWS.max(decoding));
        let mut plan = Self {
            device: device.0.name.clone(),
            free_bytes: device.1.free_bytes,
            total_bytes: device.1.total_bytes,
            weights_bytes: weights_bytes(&parts)?,
            converted: converted(&parts),
            activations_bytes: 0,
            workspace_bytes: 0,
            staging_bytes: staging_bytes(&parts),
            kv_blocks: 0,
            kv_bytes: 0,
            step_rows,
            logit_rows,
            sequences: options.sequences,
        };
        plan.activations_bytes = plan.activations(config, spec.vocab_size);
        plan.workspace_bytes = plan.workspace(config);
        plan.size_cache(config, options.kv_tokens)?;
        Ok(plan)
    }

    /// Rows of activations of that width that there is memory for.
    pub(super) fn rows_of(&self, width: Width) -> usize {
        match width {
            Width::Row(_) => self.step_rows,
            Width::Logits(_) => self.logit_rows,
        }
    }

    fn activations(&self, config: &Config, vocab_size: usize) -> u64 {
        let mut bytes = 0;
        let counted = Buffers::new(config, vocab_size, |width| {
            bytes += Arena::bytes_of::<f32>(self.rows_of(width) * stride(width));
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(_) = counted;
        for rope in std::iter::once(&config.rope).chain(&config.local_rope) {
            let pairs = rope.dimensions / 2;
            bytes += Arena::bytes_of::<f64>(pairs);
            bytes += Arena::bytes_of::<f32>(self.step_rows * pairs * 2);
        }
        bytes + Arena::bytes_of::<u32>(self.words(config))
    }

    /// Numbers that describe the largest step.
    pub(super) fn words(&self, config: &Config) -> usize {
        most_words(self.step_rows, self.sequences, config.context_length)
    }

    fn workspace(&self, config: &Config) -> u64 {
        let inputs = [config.hidden, config.query_width(), config.feed_forward];
        let products = inputs.map(|inputs| linear_workspace(self.step_rows, inputs));
        let context = Shape::context_bucket(config.context_length);
        let shape = [self.step_rows, config.heads, config.head_dim];
        let attention = attention_workspace(shape, context);
        let bytes = products.into_iter().fold(attention, usize::max);
        Arena::bytes_of::<u8>(bytes)
    }

    /// Bytes of a block, of keys and values in every layer.
    fn block_bytes(config: &Config) -> u64 {
        let bytes = cache_block_bytes(config.kv_heads, config.head_dim) as u64;
        bytes * 2 * config.layers as u64
    }

    /// Everything but the cache.
    fn fixed_bytes(&self) -> u64 {
        self.weights_bytes + self.activations_bytes + self.workspace_bytes
    }

    /// What the model takes in all.
    pub fn bytes(&self) -> u64 {
        self.fixed_bytes() + self.kv_bytes.max(self.staging_bytes)
    }

    /// What it may take.
    fn budget(&self) -> u64 {
        (self.free_bytes as f64 * SHARE) as u64
    }

    fn size_cache(&mut self, config: &Config, kv_tokens: Option<usize>) -> Result<(), ModelError> {
        let context = blocks_for(config.context_length, BLOCK_SIZE);
        let block_bytes = Self::block_bytes(config);
        let left = self.budget().saturating_sub(self.fixed_bytes()) / block_bytes;
        let fitting = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        self.kv_blocks = match kv_tokens {
            Some(tokens) => blocks_for(tokens, BLOCK_SIZE),
            None => fitting
                .min(self.sequences.saturating_mul(context))
                .max(blocks_for(LEAST_KV_TOKENS, BLOCK_SIZE).min(context)),
        };
        // One more for rows that only fill a step up; a block's number has 32 bits.
        let blocks = self.kv_blocks as u64 + 1;
        self.kv_bytes = blocks.saturating_mul(block_bytes);
        if self.kv_blocks >= u32::MAX as usize || self.bytes() > self.budget() {
            return Err(self.shortage(fitting * BLOCK_SIZE));
        }
        Ok(())
    }

    fn shortage(&self, fitting_tokens: usize) -> ModelError {
        let help = if fitting_tokens >= LEAST_KV_TOKENS {
            format!("a KV cache (kv_tokens) of {fitting_tokens} tokens would fit")
        } else if self.weights_bytes > self.budget() {
            "the weights alone are too large: a more strongly quantised file or a GPU with more memory would help"
                .to_owned()
        } else {
            "there is no room for a cache beside the rest: fewer rows a step (step_rows), fewer sequences, a more strongly quantised file or a GPU with more memory would help"
                .to_owned()
        };
        ModelError::DeviceMemory(Box::new(DeviceShortage {
            needed: Bytes(self.bytes()).to_string(),
            budget: Bytes(self.budget()).to_string(),
            free: Bytes(self.free_bytes).to_string(),
            device: self.device.clone(),
            parts: self.parts(),
            help,
        }))
    }

    fn parts(&self) -> String {
        format!(
            "weights {}, KV cache {} ({} tokens), activations {}, workspace {}, while loading {} instead of the cache",
            Bytes(self.weights_bytes),
            Bytes(self.kv_bytes),
            self.kv_blocks.saturating_mul(BLOCK_SIZE),
            Bytes(self.activations_bytes),
            Bytes(self.workspace_bytes),
            Bytes(self.staging_bytes),
        )
    }
}

impl fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, bytes: u64, note: String| {
            writeln!(f, "  {name:<12} {:>10}  {note}", Bytes(bytes).to_string())
        };
        writeln!(f, "{}", self.device)?;
        line(f, "weights", self.weights_bytes, String::new())?;
        for Converted {
            from,
            to,
            matrices,
            bytes,
        } in &self.converted
        {
            let note = format!("of them {matrices} matrices of {from}, computed with as {to}");
            line(f, "", *bytes, note)?;
        }
        let tokens = self.kv_blocks * BLOCK_SIZE;
        line(
            f,
            "KV cache",
            self.kv_bytes,
            format!("{tokens} tokens, f16"),
        )?;
        let note = format!("steps of up to {} rows", self.step_rows);
        line(f, "activations", self.activations_bytes, note)?;
        line(f, "workspace", self.workspace_bytes, String::new())?;
        let note = format!(
            "of {} free ({} in all)",
            Bytes(self.free_bytes),
            Bytes(self.total_bytes)
        );
        write!(
            f,
            "  {:<12} {:>10}  {note}",
            "together",
            Bytes(self.bytes()).to_string()
        )
    }
}

/// Bytes for people.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        let mib = self.0 as f64 / MIB;
        if mib < 1024.0 {
            write!(f, "{mib:.1} MiB")
        } else {
            write!(f, "{:.2} GiB", mib / 1024.0)
        }
    }
}

/// Values from one row to the next: logits begin where 16 bytes do.
pub(super) fn stride(width: Width) -> usize {
    match width {
        Width::Row(width) => width,
        Width::Logits(width) => width.next_multiple_of(4),
    }
}

fn check_shape(config: &Config) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::DeviceShape { what });
    let heads_per_kv_head = config.heads / config.kv_heads;
    if cache_block_bytes(config.kv_heads, config.head_dim) == 0
        || !config.head_dim.is_multiple_of(8)
    {
        return refuse(format!(
            "heads of {} values; a multiple of 8 up to 256 they can",
            config.head_dim
        ));
    }
    if heads_per_kv_head > MOST_HEADS_PER_KV_HEAD {
        return refuse(format!(
            "{heads_per_kv_head} query heads a key head; up to {MOST_HEADS_PER_KV_HEAD} they can"
        ));
    }
    if config.hidden > MOST_NORM_WIDTH {
        return refuse(format!(
            "a hidden state of {} values; up to {MOST_NORM_WIDTH} they can",
            config.hidden
        ));
    }
    for (what, width) in [
        ("a hidden state", config.hidden),
        ("a feed-forward block", config.feed_forward),
    ] {
        if !width.is_multiple_of(4) {
            return refuse(format!(
                "{what} of {width} values; a multiple of 4 they can"
            ));
        }
    }
    Ok(())
}

fn weights_bytes(parts: &[Part]) -> Result<u64, ModelError> {
    let mut bytes = 0;
    for part in parts {
        bytes += match *part {
            Part::Vector(len) => Arena::bytes_of::<f32>(len),
            Part::Matrix(dtype, shape) => Arena::bytes_of::<u8>(held_bytes(dtype, shape)?),
        };
    }
    Ok(bytes)
}

fn held_bytes(dtype: GgmlDType, shape: [usize; 2]) -> Result<usize, ModelError> {
    match matrix_bytes(held_kind(dtype).0, shape) {
        0 => Err(ModelError::DeviceShape {
            what: format!(
                "a matrix of {} x {} values of type {dtype:?}",
                shape[0], shape[1]
            ),
        }),
        bytes => Ok(bytes),
    }
}

fn staging_bytes(parts: &[Part]) -> u64 {
    let bytes = |part: &Part| match *part {
        Part::Vector(_) => 0,
        Part::Matrix(dtype, shape) => file_bytes(dtype, shape),
    };
    let largest = parts.iter().map(bytes).max().unwrap_or(0);
    Arena::bytes_of::<u8>(largest)
}

/// Bytes from which a matrix is packed: those in the file, or two for each number.
fn file_bytes(dtype: GgmlDType, [outputs, inputs]: [usize; 2]) -> usize {
    if held_kind(dtype).1 {
        outputs * inputs * 2
    } else {
        outputs * inputs / dtype.block_size() * dtype.type_size()
    }
}

fn converted(parts: &[Part]) -> Vec<Converted> {
    let mut by_type: BTreeMap<String, Converted> = BTreeMap::new();
    for part in parts {
        if let Part::Matrix(dtype, shape) = *part
            && let (kind, true) = held_kind(dtype)
        {
            let from = format!("{dtype:?}");
            let entry = by_type.entry(from.clone()).or_insert(Converted {
                from,
                to: "F16",
                matrices: 0,
                bytes: 0,
            });
            entry.matrices += 1;
            entry.bytes += matrix_bytes(kind, shape) as u64;
            debug_assert_eq!(kind, Kind::F16);
        }
    }
    by_type.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::ModelFile;

    const GIB: u64 = 1 << 30;

    fn plan(name: &str, free_bytes: u64, options: CudaOptions) -> Result<DevicePlan, ModelError> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
        let file = ModelFile::open(format!("{directory}/{name}.gguf")).unwrap();
        let weights = Weights::Gguf(&file);
        let info = DeviceInfo {
            name: "a device".to_owned(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            total_bytes: 2 * free_bytes,
        };
        let memory = DeviceMemory {
            free_bytes,
            total_bytes: 2 * free_bytes,
        };
        let checked = Checked::new(weights).unwrap();
        DevicePlan::new(weights, &checked, &options, (&info, memory))
    }

    const OPTIONS: CudaOptions = CudaOptions {
        kv_tokens: None,
        step_rows: 512,
        sequences: 4,
    };

    #[test]
    fn a_cache_is_as_large_as_all_sequences_or_the_memory_allow() {
        let all = plan("tiny-q8_0", GIB, OPTIONS).unwrap();
        let file = "tiny-q8_0";
        let asked = CudaOptions {
            kv_tokens: Some(100),
            ..OPTIONS
        };
        assert_eq!(plan(file, GIB, asked).unwrap().kv_blocks, 7);
        // One block beside those of the sequences.
        let block_bytes = all.kv_bytes / (all.kv_blocks as u64 + 1);
        assert_eq!(all.kv_bytes % block_bytes, 0);
        let fixed = all.fixed_bytes();
        let free = |blocks: u64| ((fixed + blocks * block_bytes) as f64 / SHARE) as u64 + 2;
        let half = plan(file, free(40), OPTIONS).unwrap();
        assert!(half.bytes() <= half.budget());
        if half.kv_blocks < all.kv_blocks {
            assert_eq!(half.kv_blocks, 39);
        }
    }

    #[test]
    fn a_shortage_names_the_parts_and_what_would_fit() {
        let asked = |kv_tokens| CudaOptions {
            kv_tokens: Some(kv_tokens),
            ..OPTIONS
        };
        let error = plan("tiny-q8_0", GIB, asked(1 << 40))
            .unwrap_err()
            .to_string();
        for part in [
            "a device has 1.00 GiB of memory free, of which 921.6 MiB may be used",
            "weights ",
            "KV cache ",
            "activations ",
            "workspace ",
            "tokens would fit",
        ] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        let error = plan("tiny-q8_0", 1 << 16, asked(256))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the weights alone are too large: "),
            "{error}"
        );
        let weights = plan("tiny-q8_0", GIB, OPTIONS).unwrap().weights_bytes;
        let error = plan("tiny-q8_0", 2 * weights, asked(256))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("there is no room for a cache beside the rest: "),
            "{error}"
        );
    }

    #[test]
    fn weights_are_counted_as_they_are_held() {
        // Q4_1 is held as F16, two bytes a weight; the norms of the model are F32.
        let plan_of = |name| plan(name, GIB, OPTIONS).unwrap();
        assert!(plan_of("tiny-q8_0").converted.is_empty());
        let converted = plan_of("phi3-q4_1");
        assert_eq!(converted.converted.len(), 1, "{converted}");
        assert_eq!(converted.converted[0].from, "Q4_1");
        let text = converted.to_string();
        assert!(
            text.contains("matrices of Q4_1, computed with as F16"),
            "{text}"
        );
        // Two bytes of every weight, in matrices and in fused ones' parts, and at most a tile of outputs beside a matrix.
        let held = converted.converted[0].bytes;
        assert!(held <= converted.weights_bytes && held > converted.weights_bytes / 2);
        let blocks = converted.weights_bytes / 256;
        assert_eq!(converted.weights_bytes, blocks * 256);
    }
}
