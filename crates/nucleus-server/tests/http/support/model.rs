//! A model without weights: its logits are what a test says they are.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex};

use nucleus_engine::error::EngineError;
use nucleus_engine::kv_cache::BlockId;
use nucleus_engine::model::{Chunk, KvLayout, Logits, Model, ModelSpec, Tail};

/// What the model answers for one position of the output.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// This token, with certainty.
    Token(u32),
    /// These logits; every other token has -inf.
    Logits(Vec<(u32, f32)>),
    /// A row that nothing can be drawn from.
    Nan,
    /// A forward pass that fails.
    Error,
    /// A device that fails for good.
    Lost,
    /// A forward pass that panics, and takes the engine's thread with it.
    Panic,
}

/// The reply for the output's token of that index.
pub(crate) type Script = Box<dyn FnMut(usize) -> Reply + Send>;

/// Lets steps of the model through, and counts them.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    allowed: usize,
    begun: usize,
}

impl Gate {
    /// Lets `steps` more steps through.
    pub(crate) fn allow(&self, steps: usize) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.allowed = state.allowed.saturating_add(steps);
        changed.notify_all();
    }

    /// Lets every step through.
    pub(crate) fn open(&self) {
        self.allow(usize::MAX);
    }

    /// Steps that have begun, let through or not.
    pub(crate) fn begun(&self) -> usize {
        self.0.0.lock().unwrap().begun
    }

    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.begun += 1;
        while state.allowed == 0 {
            state = changed.wait(state).unwrap();
        }
        if state.allowed < usize::MAX {
            state.allowed -= 1;
        }
    }
}

/// A gate that opens when it is dropped, so that an engine never waits at it for a test that is over.
pub(crate) struct GateGuard(pub Gate);

impl Deref for GateGuard {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0
    }
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// The model.
pub(crate) struct ScriptedModel {
    pub(crate) spec: ModelSpec,
    pub(crate) layout: KvLayout,
    /// Tokens in a prompt: the output begins behind them.
    pub(crate) prompt_len: usize,
    pub(crate) script: Script,
    pub(crate) gate: Gate,
}

impl ScriptedModel {
    pub(crate) const NAME: &'static str = "scripted";
    pub(crate) const CONTEXT: usize = 1024;

    pub(crate) fn new(vocab_size: usize, prompt_len: usize, script: Script, gate: Gate) -> Self {
        let spec = ModelSpec {
            architecture: "scripted".into(),
            name: Self::NAME.into(),
            vocab_size,
            context_length: Self::CONTEXT,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            parameters: 0,
            weight_bytes: 0,
            quantization: "F32".into(),
        };
        let layout = KvLayout {
            block_size: 16,
            blocks: 64 * 64,
            value_bytes: 4,
        };
        Self {
            spec,
            layout,
            prompt_len,
            script,
            gate,
        }
    }

    /// The logits that follow a chunk, unless the script says that the model fails.
    #[allow(clippy::result_large_err, reason = "it is the engine's own")]
    fn row(&mut self, chunk: &Chunk<'_>) -> Result<Vec<f32>, EngineError> {
        let output = (chunk.position + chunk.tokens.len()).saturating_sub(self.prompt_len);
        let logits = match (self.script)(output) {
            Reply::Token(id) => vec![(id, 0.0)],
            Reply::Logits(logits) => logits,
            Reply::Nan => vec![(0, f32::NAN)],
            Reply::Error => return Err(EngineError::Unsupported("scripted failure".into())),
            Reply::Lost => return Err(EngineError::DeviceLost("scripted loss".into())),
            Reply::Panic => panic!("scripted panic"),
        };
        let mut row = vec![f32::NEG_INFINITY; self.spec.vocab_size];
        logits
            .into_iter()
            .for_each(|(id, logit)| row[id as usize] = logit);
        Ok(row)
    }
}

impl Model for ScriptedModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn kv_layout(&self) -> KvLayout {
        self.layout
    }

    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError> {
        self.gate.pass();
        let mut data = Vec::new();
        for chunk in chunks.iter().filter(|chunk| chunk.wants_logits) {
            data.extend(self.row(chunk)?);
        }
        if data.is_empty() {
            return Ok(());
        }
        tail.record(Logits::Host {
            data: &data,
            vocab: self.spec.vocab_size,
        })
    }
    /// Nothing depends on what is in a block.
    fn copy_block(&mut self, _from: BlockId, _to: BlockId) {}
}
