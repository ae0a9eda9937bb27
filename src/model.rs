//! From `--model` to an engine that takes requests.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use nucleus_engine::chat_template::{ChatTemplate, Message};
use nucleus_engine::constraint::{Constraint, Format};
use nucleus_engine::generate::{
    Engine, EngineOptions, EngineThread, Generation, Request, SubmitError,
};
use nucleus_engine::gguf::Value;
use nucleus_engine::model::{KvType, Model};
use nucleus_engine::model_source::ModelSource;
use nucleus_engine::models::{self, Device, LoadOptions, LoadProgress};
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::{MAX_VOCAB, Policy, SamplingParams, VocabInfo, Warning};
use serde_json::Value as Json;

use crate::device;
use crate::failure::usage;
use crate::recommended::{Recommended, describe, overlay};
use crate::terminal::Notes;

#[cfg(feature = "bundled-model")]
mod bundled {
    pub(super) use nucleus_engine::gguf::ModelFile;

    pub(super) const NAME: &str = "the bundled model";
    pub(super) const BYTES: &[u8] =
        include_bytes!("../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
    pub(super) const GENERATION_CONFIG: &str =
        include_str!("../models/little-storyteller/generation_config.json");
}

/// Files below this size load faster than anyone could read a progress bar.
const LARGE_FILE_BYTES: u64 = 100_000_000;

/// Most positions that the KV cache has room for unless a flag says otherwise.
const MAX_DEFAULT_KV_TOKENS: usize = 32 * 1024;

/// Which model to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelChoice {
    /// The one inside the program.
    #[cfg(feature = "bundled-model")]
    Bundled,
    /// A GGUF file, or a directory of safetensors files.
    Path(PathBuf),
}

/// What the command line says about the model.
#[derive(Debug)]
pub(crate) struct ModelOptions {
    pub(crate) choice: ModelChoice,
    /// Where to compute.
    pub(crate) device: device::Choice,
    /// Threads to compute with; `None` is one per core.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Positions that the KV cache holds; `None` is what `kv_room` says.
    pub(crate) kv_tokens: Option<NonZeroUsize>,
    /// What keys and values are held in.
    pub(crate) kv_type: KvType,
    /// How large the cache is unless its size is given.
    pub(crate) kv_room: KvRoom,
    /// Bounds of the engine.
    pub(crate) engine: EngineOptions,
}

/// How large a KV cache is unless its size is given: so many full contexts, at most [`MAX_DEFAULT_KV_TOKENS`] positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvRoom {
    /// One context: a single sequence.
    One,
    /// So many contexts; on a GPU, what its memory has room for.
    Many(usize),
}

impl ModelChoice {
    /// The model of a command without `--model`.
    pub(crate) fn without_flag() -> anyhow::Result<Self> {
        Self::bundled().map_err(|_| usage("this program holds no model: say --model PATH"))
    }

    /// The model inside the program.
    #[cfg(feature = "bundled-model")]
    pub(crate) fn bundled() -> anyhow::Result<Self> {
        Ok(Self::Bundled)
    }

    /// The model inside the program, which was built without one.
    #[cfg(not(feature = "bundled-model"))]
    pub(crate) fn bundled() -> anyhow::Result<Self> {
        Err(usage(
            "this program was built without the feature bundled-model: say --model PATH",
        ))
    }

    fn open(&self) -> anyhow::Result<ModelSource> {
        Ok(match self {
            #[cfg(feature = "bundled-model")]
            Self::Bundled => bundled::ModelFile::from_static(bundled::BYTES, bundled::NAME)?.into(),
            Self::Path(path) => ModelSource::open(path)?,
        })
    }

    /// What the makers recommend: the file's own keys, or else the `generation_config.json` that belongs to it.
    fn recommended(&self, source: &ModelSource) -> anyhow::Result<Recommended> {
        let own = match source {
            ModelSource::Gguf(file) => {
                Recommended::from_gguf(|key| file.metadata().get(key).map(json_value))
                    .with_context(|| format!("{}: general.sampling", file.name()))?
            }
            ModelSource::Safetensors(_) => Recommended::default(),
        };
        let beside = match self {
            #[cfg(feature = "bundled-model")]
            Self::Bundled => Recommended::from_generation_config(bundled::GENERATION_CONFIG)?,
            Self::Path(path) if path.is_dir() => {
                read_generation_config(&path.join("generation_config.json"))?
            }
            Self::Path(path) => {
                read_generation_config(&path.with_file_name("generation_config.json"))?
            }
        };
        let params = if own == Recommended::default() {
            beside.params
        } else {
            own.params
        };
        Ok(Recommended {
            params,
            end_ids: beside.end_ids,
        })
    }
}

/// The file's recommendations; none where there is no file.
fn read_generation_config(path: &Path) -> anyhow::Result<Recommended> {
    if !path.is_file() {
        return Ok(Recommended::default());
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Recommended::from_generation_config(&text).with_context(|| path.display().to_string())
}

/// A loaded model with everything that its file says.
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) thread: EngineThread,
    pub(crate) chat_template: Option<ChatTemplate>,
    recommended: Recommended,
    /// From the beginning of opening the file to an engine that takes requests.
    pub(crate) load_time: Duration,
}

/// Loads a model and starts its engine, with a progress bar for a person who waits.
pub(crate) fn load(options: &ModelOptions, notes: Notes) -> anyhow::Result<Loaded> {
    let started = Instant::now();
    let source = options.choice.open()?;
    let recommended = options.choice.recommended(&source)?;
    let (tokenizer, chat_template) = read_text_side(&source).with_context(|| source.name())?;
    let tokenizer = tokenizer.with_end_of_generation(&recommended.end_ids);
    if tokenizer.add_eos() {
        notes.say("note: the model's files ask for an end-of-text token after every text; prompts go without, since they are to be continued");
    }
    if source.weights().has_images() {
        notes.say("note: the model can read images, which this program cannot; only its text model is loaded");
    }
    let model = read_tensors(&source, options, notes).with_context(|| source.name())?;
    let (engine, thread) = Engine::start(model, Arc::new(tokenizer), options.engine)?;
    Ok(Loaded {
        engine,
        thread,
        chat_template,
        recommended,
        load_time: started.elapsed(),
    })
}

/// Vocabulary and chat template of a file whose model can run: what cannot is refused before anything large is read.
fn read_text_side(source: &ModelSource) -> anyhow::Result<(Tokenizer, Option<ChatTemplate>)> {
    models::memory(source.weights())?;
    Ok((source.tokenizer()?, source.chat_template()?))
}

fn read_tensors(
    source: &ModelSource,
    options: &ModelOptions,
    notes: Notes,
) -> anyhow::Result<Box<dyn Model>> {
    if let Some(threads) = options.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build_global()?;
    }
    let context_length = models::memory(source.weights())?.context_length;
    let load_options = |device| LoadOptions {
        device,
        kv_tokens: kv_tokens(options, context_length, device),
        threads: options.threads,
        kv_type: options.kv_type,
        step_rows: NonZeroUsize::new(options.engine.step_tokens),
        sequences: NonZeroUsize::new(options.engine.logit_rows()),
        ..LoadOptions::default()
    };
    let placed = device::Model {
        weights: source.weights(),
        options: &load_options,
    };
    let device = options.device.for_model(&placed, notes)?;
    let is_large = source.size() >= LARGE_FILE_BYTES;
    let bar = (notes.may_animate() && is_large).then(progress_bar);
    let mut report = |progress: LoadProgress| {
        if let Some(bar) = &bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
    };
    let model = models::load(
        source.weights(),
        LoadOptions {
            progress: Some(&mut report),
            ..load_options(device)
        },
    )?;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    Ok(model)
}

/// Positions that the cache is to hold; `None` leaves it to the device's memory.
fn kv_tokens(
    options: &ModelOptions,
    context_length: usize,
    device: Device,
) -> Option<NonZeroUsize> {
    let contexts = match (options.kv_room, device) {
        (KvRoom::One, _) => Some(1),
        (KvRoom::Many(contexts), Device::Cpu) => Some(contexts),
        (KvRoom::Many(_), Device::Cuda(_)) => None,
    };
    let default = contexts.map(|contexts| context_length.saturating_mul(contexts));
    let default = default.map(|tokens| tokens.min(MAX_DEFAULT_KV_TOKENS));
    options.kv_tokens.or(default.and_then(NonZeroUsize::new))
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.expect("the template is sound"))
}

impl Loaded {
    /// The parameters to generate with: what is recommended, and over it what was asked for. They are noted, and what the
    /// sampler has to say about those that were asked for.
    pub(crate) fn sampling(
        &self,
        flags: &SamplingParams,
        notes: Notes,
    ) -> anyhow::Result<SamplingParams> {
        let recommended = &self.recommended.params;
        let params = overlay(recommended.clone(), flags);
        let compiled = self.engine.validate(&params).map_err(usage)?;
        notes.say(&format!("sampling: {}", describe(&params)));
        let about_flags = |warning: &&Warning| {
            is_present(flags, warning.param) || !is_present(recommended, warning.param)
        };
        for warning in compiled.warnings().iter().filter(about_flags) {
            notes.say(&format!("note: {warning}"));
        }
        Ok(params)
    }

    /// The prompt as tokens, with whatever the model wants before a text. Control tokens that are written out in it, such
    /// as `<|im_start|>`, are those tokens.
    pub(crate) fn encode_prompt(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let tokenizer = self.engine.tokenizer();
        let options = EncodeOptions {
            add_bos: tokenizer.add_bos(),
            parse_special: true,
            ..EncodeOptions::default()
        };
        Ok(tokenizer.encode(text, options)?)
    }

    /// A conversation as tokens, ready for the model's answer.
    pub(crate) fn encode_chat(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let text = self.chat_template()?.render(messages)?;
        Ok(self.engine.tokenizer().encode(
            &text,
            EncodeOptions {
                parse_special: true,
                ..EncodeOptions::default()
            },
        )?)
    }

    /// How the model writes a conversation down.
    pub(crate) fn chat_template(&self) -> anyhow::Result<&ChatTemplate> {
        let name = &self.engine.spec().name;
        let none = || {
            format!("{name} has no chat template; `nucleus generate` can continue a text with it")
        };
        self.chat_template.as_ref().with_context(none)
    }

    /// Most positions of prompt and output together.
    pub(crate) fn context_length(&self) -> usize {
        self.engine.spec().context_length
    }

    /// What holds a text to a format that this flag asks for.
    pub(crate) fn constraint(&self, flag: &str, format: Format) -> anyhow::Result<Constraint> {
        let compiled = self.engine.constraint(format);
        compiled.map_err(|error| usage(format!("{flag}: {error}")))
    }

    /// Begins to generate.
    pub(crate) fn submit(&self, request: Request) -> anyhow::Result<Generation> {
        self.engine.submit(request).map_err(|error| match error {
            SubmitError::Admission(_) | SubmitError::ShuttingDown | SubmitError::Failed(_) => {
                error.into()
            }
            _ => usage(error),
        })
    }
}

fn is_present(params: &SamplingParams, name: &str) -> bool {
    params.get(name).is_ok_and(|value| value.is_some())
}

/// Refuses values that no model could accept, before a large one is loaded. Token ids are checked against the model's
/// own vocabulary later.
pub(crate) fn check_ranges(flags: &SamplingParams) -> anyhow::Result<()> {
    flags
        .check_policy(Policy::Library, &VocabInfo::new(MAX_VOCAB))
        .map_err(usage)
}

/// A metadata value as JSON. Floats keep the digits of their own type; what is not finite becomes null.
pub(crate) fn json_value(value: &Value) -> Json {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Bool(truth) => (*truth).into(),
        Value::Strings(list) => list.iter().collect(),
        Value::Numbers(list) => list.iter().map(|number| json_value(&number)).collect(),
        number => number.to_string().parse().unwrap_or(Json::Null),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_keeps_its_digits() {
        assert_eq!(json_value(&Value::F32(0.7)), json!(0.7));
        assert_eq!(json_value(&Value::U64(u64::MAX)), json!(u64::MAX));
        assert_eq!(json_value(&Value::I8(-3)), json!(-3));
        assert_eq!(json_value(&Value::F32(f32::NAN)), Json::Null);
        assert_eq!(json_value(&Value::F64(1e-5)), json!(1e-5));
        assert_eq!(
            json_value(&Value::Strings(["a", "b"].into_iter().collect())),
            json!(["a", "b"])
        );
    }

    #[test]
    fn ranges_are_checked_without_a_model() {
        let refused = check_ranges(&SamplingParams {
            top_p: Some(1.5),
            ..Default::default()
        });
        assert_eq!(
            refused.unwrap_err().to_string(),
            "top_p: 1.5 is outside [0, 1]"
        );
        assert!(
            check_ranges(&SamplingParams {
                top_k: Some(40),
                ..Default::default()
            })
            .is_ok()
        );
    }
}
