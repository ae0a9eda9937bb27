//! A model without weights whose every token depends on all tokens before it, as the cache holds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::EngineError;
use crate::kv_cache::BlockId;
use crate::model::{Chunk, DrawnTokens, KvLayout, Logits, Model, ModelSpec, PENDING, Tail};

/// Something that goes wrong in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The forward pass fails.
    Error,
    /// The forward pass panics.
    Panic,
    /// The keys and values of the chunk at this place, modulo their number, are NaN, and so are all logits that follow from them.
    NanRow(usize),
    /// There is no memory for steps of more than so many tokens, until one is smaller or ends a request.
    OutOfMemory(usize),
    /// There is no memory to give a sequence a slot of the device's sampler, once.
    NoSlot,
    /// There is no memory for a draw on the device, once, of which some has happened.
    NoDraw,
    /// The device is lost in the forward pass.
    DeviceLost,
    /// The device is lost before the tokens of a step have come.
    DrawLost,
}

/// Faults for the steps to come, set from outside.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Option<Fault>>>);

impl Faults {
    /// Lets the next step go wrong.
    pub fn set(&self, fault: Option<Fault>) {
        *self.lock() = fault;
    }

    /// The fault, if it is one of these; it happens once.
    pub(crate) fn take_if(&self, is: impl FnOnce(Fault) -> bool) -> Option<Fault> {
        self.lock().take_if(|fault| is(*fault))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Fault>> {
        // A panic on purpose leaves nothing half done.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A model whose keys and values are digests of all tokens up to their position, as those of a real model depend on them all.
/// Logits follow from what the blocks of a sequence hold, so that a block that was shared, freed or overwritten when it should
/// not have been changes the tokens that come.
pub struct ScriptedModel {
    spec: ModelSpec,
    layout: KvLayout,
    faults: Faults,
    /// The digest at each position of each block; `None` is a NaN.
    cache: Vec<Option<u64>>,
    logits: Vec<f32>,
    step_tokens: usize,
    runs_ahead: bool,
}

impl ScriptedModel {
    /// A model of so many tokens and positions, over an empty cache.
    pub fn new(vocab_size: usize, context_length: usize, layout: KvLayout) -> Self {
        Self {
            spec: ModelSpec {
                architecture: "scripted".into(),
                name: "scripted".into(),
                vocab_size,
                context_length,
                layers: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: 1,
                parameters: 0,
                weight_bytes: 0,
                quantization: "F32".into(),
            },
            layout,
            faults: Faults::default(),
            cache: vec![Some(0); layout.blocks * layout.block_size],
            logits: Vec::new(),
            step_tokens: usize::MAX,
            runs_ahead: false,
        }
    }

    /// The same model, which can run before it is told what the step before has drawn.
    #[must_use]
    pub fn running_ahead(self, runs_ahead: bool) -> Self {
        Self { runs_ahead, ..self }
    }

    /// The same model, for steps of at most so many tokens: more are a panic.
    #[must_use]
    pub fn with_step_tokens(self, step_tokens: usize) -> Self {
        Self {
            step_tokens,
            ..self
        }
    }

    /// Where faults are set.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The logits after a sequence, computed without a cache.
    pub fn logits_after(&self, tokens: &[u32]) -> Vec<f32> {
        let digests = tokens.iter().scan(START, |state, &token| {
            *state = mix(*state, token.into());
            Some(*state)
        });
        let mut logits = Vec::new();
        push_logits(digests.fold(START, mix), self.spec.vocab_size, &mut logits);
        logits
    }

    /// Fails for want of memory, if a fault says so.
    fn check_memory(&self, tokens: usize) -> Result<(), EngineError> {
        let mut fault = self.faults.lock();
        match *fault {
            Some(Fault::OutOfMemory(most)) if tokens > most => {
                if tokens == 1 {
                    *fault = None;
                }
                Err(EngineError::OutOfMemory(format!("{tokens} tokens")))
            }
            _ => Ok(()),
        }
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        let size = self.layout.block_size;
        blocks[position / size].index() * size + position % size
    }

    /// What the cache holds at a position.
    fn digest(&self, blocks: &[BlockId], position: usize) -> Option<u64> {
        self.cache[self.slot(blocks, position)]
    }

    fn run(&mut self, chunk: &Chunk<'_>, is_nan: bool) {
        let before = chunk.position.checked_sub(1);
        let before = before.map_or(Some(START), |before| self.digest(chunk.blocks, before));
        let mut state = before.filter(|_| !is_nan);
        for (index, &token) in chunk.tokens.iter().enumerate() {
            state = state.map(|state| mix(state, token.into()));
            let slot = self.slot(chunk.blocks, chunk.position + index);
            self.cache[slot] = state;
        }
    }

    /// Runs the chunks but those of sequences that have ended.
    ///
    /// # Panics
    /// When a fault says so; if there are more tokens than a step may have, or if a block that one chunk writes is written or read
    /// by another.
    fn step(
        &mut self,
        chunks: &[Chunk<'_>],
        ended: &[bool],
        tail: &mut dyn Tail,
    ) -> Result<(), EngineError> {
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert!(tokens <= self.step_tokens, "{tokens} tokens in a step");
        self.check_memory(tokens)?;
        let goes_on = chunks.iter().zip(ended).filter(|(_, ended)| !**ended);
        let goes_on: Vec<Chunk<'_>> = goes_on.map(|(chunk, _)| *chunk).collect();
        check_owners(&goes_on, self.layout.block_size);
        let fault = self
            .faults
            .take_if(|fault| !matches!(fault, Fault::DrawLost | Fault::NoSlot | Fault::NoDraw));
        for (index, chunk) in goes_on.iter().enumerate() {
            let is_named =
                |fault| matches!(fault, Fault::NanRow(row) if row % goes_on.len() == index);
            self.run(chunk, fault.is_some_and(is_named));
        }
        self.logits.clear();
        match fault {
            Some(Fault::Error) => return Err(EngineError::Unsupported("scripted error".into())),
            Some(Fault::Panic) => panic!("scripted panic"),
            Some(Fault::DeviceLost) => return Err(EngineError::DeviceLost("scripted loss".into())),
            _ => {}
        }
        let wanted = chunks.iter().zip(ended);
        for (chunk, &ended) in wanted.filter(|(chunk, _)| chunk.wants_logits) {
            self.read_out(chunk, ended);
        }
        if self.logits.is_empty() {
            return Ok(());
        }
        tail.record(Logits::Host {
            data: &self.logits,
            vocab: self.spec.vocab_size,
        })
    }

    /// The logits after a chunk; nothing good if it has not run.
    fn read_out(&mut self, chunk: &Chunk<'_>, ended: bool) {
        let end = chunk.position + chunk.tokens.len();
        let mut digests = (0..end).map(|position| self.digest(chunk.blocks, position));
        let vocab_size = self.spec.vocab_size;
        match digests.try_fold(START, |state, digest| Some(mix(state, digest?))) {
            Some(digest) if !ended => push_logits(digest, vocab_size, &mut self.logits),
            _ => self
                .logits
                .extend(std::iter::repeat_n(f32::NAN, vocab_size)),
        }
    }
}

/// The digest of nothing.
const START: u64 = 1;

/// A number that depends on both, and on which is which.
fn mix(state: u64, value: u64) -> u64 {
    (state.rotate_left(23) ^ value)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Logits between 0 and 4, without a pattern.
fn push_logits(digest: u64, vocab_size: usize, logits: &mut Vec<f32>) {
    let mut state = digest;
    logits.extend((0..vocab_size).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32
    }));
}

impl Model for ScriptedModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn kv_layout(&self) -> KvLayout {
        self.layout
    }

    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError> {
        self.step(chunks, &vec![false; chunks.len()], tail)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let size = self.layout.block_size;
        let (from, to) = (from.index() * size, to.index() * size);
        self.cache.copy_within(from..from + size, to);
    }

    fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }

    fn forward_ahead(
        &mut self,
        chunks: &[Chunk<'_>],
        rows: &[Option<u32>],
        tokens: DrawnTokens<'_>,
        tail: &mut dyn Tail,
    ) -> Result<(), EngineError> {
        assert!(self.runs_ahead && rows.len() == chunks.len());
        #[allow(irrefutable_let_patterns, reason = "a device has tokens too")]
        let DrawnTokens::Host(tokens) = tokens else {
            panic!("a script's tokens are on the host");
        };
        let drawn = |row: &Option<u32>| row.map_or(Some(PENDING), |row| tokens[row as usize]);
        let drawn: Vec<Option<u32>> = rows.iter().map(drawn).collect();
        let ended: Vec<bool> = drawn.iter().map(Option::is_none).collect();
        // Any token stands for one that could not be drawn.
        let known = drawn.iter().map(|id| id.filter(|&id| id != PENDING));
        let known: Vec<[u32; 1]> = known.map(|id| [id.unwrap_or(0)]).collect();
        let chunks = chunks
            .iter()
            .zip(rows)
            .zip(&known)
            .map(|((chunk, row), known)| {
                assert_eq!(row.is_some(), *chunk.tokens == [PENDING]);
                Chunk {
                    tokens: if row.is_some() { known } else { chunk.tokens },
                    ..*chunk
                }
            });
        self.step(&chunks.collect::<Vec<_>>(), &ended, tail)
    }
}

/// Each block that is written must belong to one sequence alone, and no other may read it. Chunks that follow each other
/// over the same blocks are one sequence's.
fn check_owners(chunks: &[Chunk<'_>], block_size: usize) {
    let mut owners = Vec::with_capacity(chunks.len());
    for (index, chunk) in chunks.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &chunks[before]);
        let follows = before.is_some_and(|before| {
            std::ptr::eq(before.blocks, chunk.blocks)
                && before.position + before.tokens.len() == chunk.position
        });
        owners.push(if follows { owners[index - 1] } else { index });
    }
    let mut writers: HashMap<BlockId, usize> = HashMap::new();
    for (chunk, &owner) in chunks.iter().zip(&owners) {
        let end = chunk.position + chunk.tokens.len();
        for &block in &chunk.blocks[chunk.position / block_size..end.div_ceil(block_size)] {
            let writer = *writers.entry(block).or_insert(owner);
            assert_eq!(writer, owner, "two sequences write into {block:?}");
        }
    }
    for (chunk, &owner) in chunks.iter().zip(&owners) {
        for &block in &chunk.blocks[..chunk.position / block_size] {
            let writer = writers.get(&block).copied().unwrap_or(owner);
            assert_eq!(writer, owner, "{block:?} is read while it is written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ScriptedModel {
        let layout = KvLayout {
            block_size: 2,
            blocks: 4,
            value_bytes: 4,
        };
        ScriptedModel::new(8, 8, layout)
    }

    fn forward(
        model: &mut ScriptedModel,
        tokens: &[u32],
        position: usize,
        blocks: [u32; 2],
    ) -> Vec<f32> {
        let blocks = blocks.map(BlockId);
        let chunk = Chunk {
            tokens,
            position,
            blocks: &blocks,
            wants_logits: true,
        };
        let mut row = Vec::new();
        let mut tail = |logits: Logits<'_>| {
            let (data, _) = logits.on_host().expect("a scripted model is on the host");
            row = data.to_vec();
            Ok(())
        };
        model.forward(&[chunk], &mut tail).unwrap();
        row
    }

    #[test]
    fn logits_follow_from_what_the_blocks_hold() {
        let mut model = model();
        let expected = model.logits_after(&[1, 2, 3]);
        assert_eq!(forward(&mut model, &[1, 2, 3], 0, [3, 1]), expected);
        model.copy_block(BlockId(3), BlockId(0));
        assert_eq!(forward(&mut model, &[3], 2, [0, 2]), expected);
        // The beginning is another one.
        forward(&mut model, &[2], 0, [0, 2]);
        assert_ne!(forward(&mut model, &[3], 2, [0, 2]), expected);
    }

    #[test]
    #[should_panic(expected = "two sequences write into BlockId(1)")]
    fn a_block_with_two_writers_is_noticed() {
        let chunk = Chunk {
            tokens: &[1],
            position: 0,
            blocks: &[BlockId(1)],
            wants_logits: false,
        };
        let mut tail = |_: Logits<'_>| Ok(());
        let _ = model().forward(&[chunk, chunk], &mut tail);
    }
}
