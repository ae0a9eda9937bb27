//! Requests and rows on which samplers are compared, and the comparison.

use half::{bf16, f16};
use nucleus_sampling::{
    CompiledParams, CpuOptions, CpuSampler, LogitsRow, Logprobs, LogprobsMode, PARAMS,
    ReferenceSampler, Row, SampledToken, Sampler, SamplerState, SamplingParams, Stage, Status,
    TokenLogprob, Trace, VocabInfo,
};
use proptest::collection::{btree_map, vec};
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Every way the fast sampler can work.
pub(crate) const WAYS: [CpuOptions; 4] = [
    CpuOptions {
        simd: true,
        shortcuts: true,
    },
    CpuOptions {
        simd: true,
        shortcuts: false,
    },
    CpuOptions {
        simd: false,
        shortcuts: true,
    },
    CpuOptions {
        simd: false,
        shortcuts: false,
    },
];

/// A result in which two NaNs of the same bits are equal.
pub(crate) fn bits(sampled: &SampledToken) -> (u32, u32, u32, Status, i32) {
    let SampledToken {
        token_id,
        logprob,
        kept_count,
        status,
        feedback,
    } = *sampled;
    (token_id, logprob.to_bits(), kept_count, status, feedback)
}

fn list_bits(list: &[TokenLogprob]) -> Vec<(u32, u32)> {
    list.iter()
        .map(|entry| (entry.token_id, entry.logprob.to_bits()))
        .collect()
}

/// What a trace says, every number as its bits.
fn trace_bits(trace: &Trace) -> impl PartialEq + std::fmt::Debug + use<> {
    let stages: Vec<_> = trace
        .stages
        .iter()
        .map(|stage| {
            let numbers = (
                stage.mass.to_bits(),
                stage.entropy.to_bits(),
                stage.max_logit.to_bits(),
                stage.temperature.to_bits(),
            );
            (
                stage.name,
                stage.kept,
                stage.removed,
                stage.first_removed,
                numbers,
            )
        })
        .collect();
    let distribution: Vec<_> = trace
        .distribution
        .iter()
        .map(|(id, p)| (*id, p.to_bits()))
        .collect();
    (stages, distribution, bits(&trace.sampled))
}

/// What a row comes with.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) params: SamplingParams,
    pub(crate) prompt: Vec<u32>,
    pub(crate) output: Vec<u32>,
    /// What a learner was told at each of its tokens.
    pub(crate) lessons: Vec<(u32, i32)>,
    pub(crate) mask: Option<Vec<u32>>,
    pub(crate) uniform: Option<u64>,
    pub(crate) logprobs: Logprobs,
}

impl Request {
    /// Parameters without a history.
    pub(crate) fn of(params: SamplingParams) -> Self {
        Self {
            params,
            prompt: Vec::new(),
            output: Vec::new(),
            lessons: Vec::new(),
            mask: None,
            uniform: None,
            logprobs: Logprobs::default(),
        }
    }

    /// The request compiled for a vocabulary, and its state; `None` if it is refused.
    pub(crate) fn compile(&self, vocab: u32) -> Option<(CompiledParams, SamplerState)> {
        let eos = [vocab / 3, vocab - 1];
        let params = self
            .params
            .validate(&VocabInfo::new(vocab).with_eos(&eos))
            .ok()?;
        let mut state = SamplerState::new(&params, &self.prompt);
        self.output.iter().for_each(|id| state.commit_forced(*id));
        for (token_id, feedback) in &self.lessons {
            state.commit(&SampledToken {
                token_id: *token_id,
                logprob: 0.0,
                kept_count: 1,
                status: Status::Ok,
                feedback: *feedback,
            });
        }
        Some((params, state))
    }

    /// The row that asks for this.
    pub(crate) fn row<'a>(
        &'a self,
        logits: LogitsRow<'a>,
        params: &'a CompiledParams,
        state: &'a SamplerState,
    ) -> Row<'a> {
        Row {
            mask: self.mask.as_deref(),
            uniform: self.uniform,
            logprobs: self.logprobs,
            ..Row::new(logits, params, state)
        }
    }
}

/// What a sampler says of a row, every number as its bits.
fn answers(
    sampler: &mut dyn Sampler,
    row: &Row<'_>,
    trace: bool,
) -> impl PartialEq + std::fmt::Debug + use<> {
    let sampled = sampler.sample(row);
    let top = sampler.top_logprobs(row, &sampled);
    let trace = trace.then(|| trace_bits(&sampler.trace(row)));
    (bits(&sampled), list_bits(&top), trace)
}

/// Compares ways of working with the reference on one row, with its trace where that is wanted.
pub(crate) fn check(ways: &[CpuOptions], row: &Row<'_>, trace: bool) -> Result<(), TestCaseError> {
    let expected = answers(&mut ReferenceSampler::new(), row, trace);
    for way in ways {
        let got = answers(&mut CpuSampler::with_options(*way), row, trace);
        prop_assert!(
            got == expected,
            "{:?}: {:?}, expected {:?}",
            way,
            got,
            expected
        );
    }
    Ok(())
}

/// Compares every way of working with the reference on a row of every type.
pub(crate) fn check_all(
    logits: &[f32],
    vocab: u32,
    request: &Request,
    trace: bool,
) -> Result<(), TestCaseError> {
    let Some((params, state)) = request.compile(vocab) else {
        return Ok(());
    };
    let halves: Vec<f16> = logits.iter().map(|x| f16::from_f32(*x)).collect();
    let brains: Vec<bf16> = logits.iter().map(|x| bf16::from_f32(*x)).collect();
    let rows = [
        LogitsRow::F32(logits),
        LogitsRow::F16(&halves),
        LogitsRow::Bf16(&brains),
    ];
    rows.into_iter()
        .try_for_each(|row| check(&WAYS, &request.row(row, &params, &state), trace))
}

/// A shape of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Normal with a standard deviation.
    Bell(f32),
    /// Normal, with 20 tokens raised by 6 to 14.
    Peaked,
    /// Normal in steps of a quarter.
    Ties,
    /// All the same.
    Flat,
    /// One far above the rest.
    OneHot,
    /// Falling with the id, or rising.
    Sorted { rising: bool },
    /// Normal times 1,000: hardly anything has weight.
    Steep,
}

/// How a row is made.
#[derive(Clone, Debug)]
pub(crate) struct RowSpec {
    pub(crate) shape: Shape,
    pub(crate) seed: u64,
    /// Added to every logit.
    pub(crate) shift: f32,
    /// One in this many is -inf; 0: none.
    pub(crate) holes: u64,
    /// Logits that are replaced, by place (as a fraction of the row).
    pub(crate) odd: Vec<(f64, f32)>,
}

fn splitmix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A number in [0, 1) from a seed.
fn fraction(seed: u64) -> f64 {
    (splitmix(seed) >> 11) as f64 / (1u64 << 53) as f64
}

impl RowSpec {
    /// A row of a shape without anything else.
    pub(crate) fn plain(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            seed,
            shift: 0.0,
            holes: 0,
            odd: Vec::new(),
        }
    }

    pub(crate) fn make(&self, len: usize) -> Vec<f32> {
        let seed = |id: usize, stream: u64| splitmix(self.seed ^ stream << 56) ^ id as u64;
        let normal = |id| {
            let radius = (-2.0 * (1.0 - fraction(seed(id, 1))).ln()).sqrt();
            (radius * (std::f64::consts::TAU * fraction(seed(id, 2))).cos()) as f32
        };
        let logit = |id: usize| match self.shape {
            Shape::Bell(sigma) => sigma * normal(id),
            Shape::Peaked => 2.0 * normal(id),
            Shape::Ties => (8.0 * normal(id)).round() / 4.0,
            Shape::Flat => 1.5,
            Shape::OneHot => {
                if id == self.seed as usize % len {
                    60.0
                } else {
                    normal(id)
                }
            }
            Shape::Sorted { rising } => {
                (if rising { id } else { len - id }) as f32 * 20.0 / len as f32
            }
            Shape::Steep => 1000.0 * normal(id),
        };
        let mut row: Vec<f32> = (0..len).map(|id| logit(id) + self.shift).collect();
        if let Shape::Peaked = self.shape {
            for i in 0..20.min(len) {
                row[splitmix(seed(i, 3)) as usize % len] += 6.0 + 8.0 * fraction(seed(i, 4)) as f32;
            }
        }
        for (id, logit) in row.iter_mut().enumerate() {
            if self.holes > 0 && splitmix(seed(id, 5)).is_multiple_of(self.holes) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for (place, logit) in &self.odd {
            if let Some(last) = len.checked_sub(1) {
                row[(place * len as f64) as usize % (last + 1)] = *logit;
            }
        }
        row
    }
}

pub(crate) fn row_spec() -> impl Strategy<Value = RowSpec> {
    let shape = prop_oneof![
        select(vec![0.02f32, 0.3, 1.0, 2.5, 5.0]).prop_map(Shape::Bell),
        Just(Shape::Peaked),
        Just(Shape::Peaked),
        Just(Shape::Ties),
        Just(Shape::Ties),
        Just(Shape::Flat),
        Just(Shape::OneHot),
        any::<bool>().prop_map(|rising| Shape::Sorted { rising }),
        Just(Shape::Steep),
    ];
    let odd = prop_oneof![
        12 => select(vec![0.0, -0.0, f32::NEG_INFINITY, 20.0, 20.0, -3.4e38, 1e-41]),
        1 => select(vec![f32::NAN, f32::INFINITY, 3e38, 4.0e6, -4.0e6]),
    ];
    let shift = prop_oneof![8 => Just(0.0f32), 2 => -30.0f32..30.0, 1 => select(vec![-3.0e6f32, 2.0e6, -4_194_290.0, 5e6, 1e37])];
    (
        shape,
        any::<u64>(),
        shift,
        select(vec![0u64, 0, 0, 2, 50, 1000]),
        vec((0.0..1.0, odd), 0..3),
    )
        .prop_map(|(shape, seed, shift, holes, odd)| RowSpec {
            shape,
            seed,
            shift,
            holes,
            odd,
        })
}

/// A probability, its ends and near-ends among them.
fn probability() -> impl Strategy<Value = f64> {
    prop_oneof![3 => 0.0..1.0, 3 => select(vec![0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]), 2 => 0.0..0.01, 1 => Just(1e-6)]
}

macro_rules! any_of {
    ($($name:ident: $strategy:expr),+ $(,)?) => {
        prop_oneof![$($strategy.prop_map(|value| {
            SamplingParams { $name: Some(value), ..Default::default() }
        }).boxed()),+]
    };
}

/// A request with one parameter.
fn setting(vocab: u32) -> impl Strategy<Value = SamplingParams> {
    let ids = move |most: usize| vec(0..vocab, 0..most);
    let count = move || prop_oneof![3 => 1..60u64, 1 => 1..u64::from(vocab) + 10];
    let truncations = any_of!(
        top_k: count().prop_map(|k| k as i64),
        top_p: probability(),
        min_p: probability(),
        typical_p: probability(),
        top_n_sigma: 0.0..6.0,
        epsilon_cutoff: probability(),
        eta_cutoff: probability(),
        top_a: probability(),
        tfs_z: probability(),
        xtc_threshold: probability(),
        xtc_probability: prop_oneof![Just(1.0), Just(0.5)],
        min_keep: prop_oneof![2 => 0..5u64, 1 => count()],
        min_keep: 2..9u64,
    );
    let temperatures = any_of!(
        temperature: prop_oneof![1 => Just(0.0), 4 => 0.1..3.0, 1 => select(vec![0.01, 1.0, 30.0, 1000.0])],
        dynatemp_range: 0.0..2.0,
        dynatemp_exponent: 0.0..3.0,
        smoothing_factor: 0.0..2.0,
        smoothing_curve: 1.0..3.0,
    );
    let edits = any_of!(
        repetition_penalty: 0.5..2.0,
        frequency_penalty: -2.0..2.0,
        presence_penalty: -2.0..2.0,
        repeat_last_n: -1..20i64,
        dry_multiplier: 0.0..3.0,
        dry_base: 1.0..3.0,
        dry_allowed_length: 1..4u64,
        dry_penalty_last_n: -1..40i64,
        dry_sequence_breakers: vec(vec(0..vocab.min(6), 1..3), 0..3),
        no_repeat_ngram_size: 0..4u64,
        logit_bias: btree_map(0..vocab, prop_oneof![4 => -20.0..20.0, 1 => Just(-10000.0), 1 => Just(10000.0)], 0..20),
        allowed_token_ids: prop_oneof![ids(30), vec(0..vocab, 4000..9000)],
        bad_words: vec(vec(0..vocab.min(6), 1..3), 0..4),
        min_tokens: 0..10u64,
        ignore_eos: any::<bool>(),
    );
    let others = any_of!(
        mirostat: 1..3u64,
        mirostat_tau: 0.0..8.0,
        mirostat_eta: 0.0..1.0,
        adaptive_target: -1.0..1.0,
        adaptive_decay: 0.0..0.99,
        seed: any::<u64>(),
        samplers: subsequence(Stage::ORDERED.map(Stage::name).to_vec(), 3..15).prop_shuffle()
            .prop_map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>()),
        preset: select(vec!["default", "llama.cpp", "vllm", "hf"]).prop_map(str::to_owned),
    );
    prop_oneof![6 => truncations, 2 => temperatures, 4 => edits, 2 => others]
}

/// Requests of a few parameters.
pub(crate) fn params(vocab: u32) -> impl Strategy<Value = SamplingParams> {
    vec(setting(vocab), 0..9).prop_map(|settings| {
        let mut params = SamplingParams {
            seed: Some(11),
            ..Default::default()
        };
        for (setting, spec) in settings
            .iter()
            .flat_map(|setting| PARAMS.iter().map(move |spec| (setting, spec)))
        {
            if let Ok(Some(value)) = setting.get(spec.name) {
                params
                    .set(spec.name, value)
                    .expect("a value of the parameter's type");
            }
        }
        params
    })
}

pub(crate) fn request(vocab: u32) -> impl Strategy<Value = Request> {
    // Few different tokens, so that passages repeat; some that the vocabulary does not have.
    let id = move || prop_oneof![20 => 0..vocab.min(6), 4 => 0..vocab, 1 => any::<u32>()];
    let history = move || vec(id(), 0..40);
    let mask = vec(
        prop_oneof![any::<u32>(), Just(u32::MAX), Just(0)],
        0..vocab as usize / 32 + 2,
    );
    let logprobs = (prop_oneof![4 => 0..8u32, 1 => Just(vocab)], any::<bool>()).prop_map(
        |(top, processed)| Logprobs {
            top,
            mode: if processed {
                LogprobsMode::Processed
            } else {
                LogprobsMode::Raw
            },
        },
    );
    let lessons = vec((0..vocab, -20_000..1_000_000i32), 0..3);
    (
        params(vocab),
        history(),
        history(),
        lessons,
        weighted(0.15, mask),
        any::<Option<u64>>(),
        logprobs,
    )
        .prop_map(
            |(params, prompt, output, lessons, mask, uniform, logprobs)| Request {
                params,
                prompt,
                output,
                lessons,
                mask,
                uniform,
                logprobs,
            },
        )
}
