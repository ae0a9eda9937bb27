//! The sampler on a device against the host's, bit for bit. Without the feature `cuda` there is nothing here; the tests that need a device are
//! ignored: `just test-gpu` runs them.
#![cfg(feature = "cuda")]

#[path = "corpus/mod.rs"]
mod corpus;
#[path = "draws/mod.rs"]
#[allow(dead_code, reason = "the frequencies belong to the host's tests")]
mod draws;
#[path = "parity/mod.rs"]
#[allow(dead_code, reason = "the comparison of host samplers is not used here")]
mod parity;

use half::{bf16, f16};
use nucleus_sampling::cuda::{
    CudaError, CudaOptions, CudaSampler, MAX_QUEUED, MAX_STOPS, MAX_TOP, PlacedRow, SlotEnd,
    SlotRow, device_count, device_info, device_memory, driver_version, runtime_version,
};
use nucleus_sampling::{
    CompiledParams, CpuSampler, LogitsRow, Logprobs, LogprobsMode, NO_TOKEN, Row, SampledToken,
    Sampler, SamplerState, SamplingParams, Status, TokenLogprob, Trace, VocabInfo,
};
use parity::{Request, RowSpec, Shape, bits, request, row_spec};
use proptest::prelude::*;

/// The vocabulary of Qwen2.5.
const VOCAB: usize = 151_936;

/// Every way the kernel can work.
fn ways() -> impl Iterator<Item = CudaOptions> {
    let portable = [0, 1, 8].map(|blocks| (blocks, true));
    let clusters = [0, 1, 2, 4, 8].map(|cluster| (cluster, false));
    clusters
        .into_iter()
        .chain(portable)
        .flat_map(|(cluster, portable)| {
            [false, true].map(|exact_path| CudaOptions {
                device: 0,
                cluster,
                exact_path,
                portable,
            })
        })
}

/// The device's sampler where a host's is expected: what it does not tell, the host's does.
struct OnDevice {
    cuda: CudaSampler,
    host: CpuSampler,
}

impl OnDevice {
    fn new(options: CudaOptions) -> Self {
        Self {
            cuda: CudaSampler::new(options).expect("a CUDA device"),
            host: CpuSampler::new(),
        }
    }
}

impl Sampler for OnDevice {
    fn sample(&mut self, row: &Row<'_>) -> SampledToken {
        if row.logits.is_empty() {
            return self.host.sample(row);
        }
        self.cuda.sample(row).expect("the launch succeeds")
    }

    fn top_logprobs(&mut self, row: &Row<'_>, sampled: &SampledToken) -> Vec<TokenLogprob> {
        self.host.top_logprobs(row, sampled)
    }

    fn trace(&mut self, row: &Row<'_>) -> Trace {
        self.host.trace(row)
    }
}

/// Logits in each of the three types.
struct Logits {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Logits {
    fn new(f32: Vec<f32>) -> Self {
        let f16 = f32.iter().map(|x| f16::from_f32(*x)).collect();
        let bf16 = f32.iter().map(|x| bf16::from_f32(*x)).collect();
        Self { f32, f16, bf16 }
    }

    fn rows(&self) -> [LogitsRow<'_>; 3] {
        [
            LogitsRow::F32(&self.f32),
            LogitsRow::F16(&self.f16),
            LogitsRow::Bf16(&self.bf16),
        ]
    }
}

fn compile(params: SamplingParams, vocab: usize) -> CompiledParams {
    let seeded = SamplingParams {
        seed: Some(params.seed.unwrap_or(7)),
        ..params
    };
    seeded
        .validate(&VocabInfo::new(vocab as u32))
        .expect("the parameters are valid")
}

/// The host's and the device's results for one row, in every type and every way of working.
fn check(logits: &Logits, params: &CompiledParams, state: &SamplerState) {
    let mut host = CpuSampler::new();
    for options in ways() {
        let mut device = CudaSampler::new(options).expect("a CUDA device");
        for row in logits.rows() {
            for mode in [LogprobsMode::Raw, LogprobsMode::Processed] {
                let mut row = Row::new(row, params, state);
                row.logprobs = Logprobs { top: 0, mode };
                let got = device.sample(&row).expect("the launch succeeds");
                assert_eq!(bits(&got), bits(&host.sample(&row)), "{options:?} {mode:?}");
            }
        }
    }
}

/// A request on a peaked row of the large vocabulary.
fn check_request(params: SamplingParams) {
    let params = compile(params, VOCAB);
    let mut state = SamplerState::new(
        &params,
        &(0..600).map(|i| i * 331 % 997).collect::<Vec<_>>(),
    );
    (0..200).for_each(|i| state.commit_forced(i * 17 % 50));
    let logits = Logits::new(RowSpec::plain(Shape::Peaked, 3).make(VOCAB));
    check(&logits, &params, &state);
}

#[test]
fn without_a_device_the_error_says_so() {
    match device_count() {
        Ok(count) => assert!(count > 0),
        Err(error) => {
            assert!(matches!(error, CudaError::NoDevice { .. }), "{error:?}");
            let made = CudaSampler::new(CudaOptions::default());
            assert_eq!(made.map(|_| ()).unwrap_err(), error);
            assert!(error.to_string().contains("no CUDA device"), "{error}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn an_impossible_device_or_cluster_is_refused() {
    let count = device_count().expect("a device");
    let none = CudaSampler::new(CudaOptions {
        device: count,
        ..CudaOptions::default()
    });
    assert_eq!(
        none.map(|_| ()).unwrap_err(),
        CudaError::Device {
            device: count,
            count
        }
    );
    let odd = CudaSampler::new(CudaOptions {
        cluster: 3,
        ..CudaOptions::default()
    });
    assert!(matches!(
        odd.map(|_| ()).unwrap_err(),
        CudaError::Batch {
            field: "cluster",
            value: 3,
            ..
        }
    ));
}

/// The corpus: R1.1, R1.2, R1.3, R1.5, R1.6, R2.1 and the rules of every other stage.
#[test]
#[ignore = "needs a GPU"]
fn the_device_gives_what_the_corpus_says() {
    for options in ways() {
        corpus::check(&mut OnDevice::new(options));
    }
}

macro_rules! requests {
    ($($(#[doc = $doc:literal])* $name:ident: { $($field:ident: $value:expr),* $(,)? };)*) => {$(
        $(#[doc = $doc])*
        #[test]
        #[ignore = "needs a GPU"]
        fn $name() {
            check_request(SamplingParams { $($field: Some($value),)* ..SamplingParams::default() });
        }
    )*};
}

// Each in f32, f16 and bf16 (R2.1).
requests! {
    /// R0.2, R2.1
    greedy: { temperature: 0.0 };
    /// R1.6, R2.1: everything off.
    softmax: {};
    /// R2.1
    temperature: { temperature: 0.7 };
    /// R1.1, R2.1
    top_p: { top_p: 0.9 };
    /// R1.1, R2.1: p = 0 keeps one token.
    top_p_of_0: { top_p: 0.0 };
    /// R1.1, R2.1: p = 1 keeps all.
    top_p_of_1: { top_p: 1.0 };
    /// R1.1, R2.1: a cut deep in the tail.
    top_p_of_almost_1: { top_p: 0.9999, temperature: 1.5 };
    /// R1.1, R2.1: a flat distribution.
    top_p_when_hot: { top_p: 0.5, temperature: 100.0 };
    /// R1.2, R2.1
    top_k: { top_k: 50 };
    /// R1.2, R2.1
    top_k_of_1: { top_k: 1 };
    /// R1.2, R2.1: 0 is off.
    top_k_of_0: { top_k: 0 };
    /// R1.2, R2.1: more than the list holds.
    top_k_of_20000: { top_k: 20_000 };
    /// R1.2, R2.1: above the vocabulary, off.
    top_k_above_the_vocabulary: { top_k: 1_000_000 };
    /// R1.3, R2.1
    repetition_penalty: { repetition_penalty: 1.3 };
    /// R1.3, R2.1: a reward.
    repetition_penalty_below_1: { repetition_penalty: 0.7, top_k: 40 };
    /// R1.3, R2.1: a window.
    repetition_penalty_in_a_window: { repetition_penalty: 1.3, repeat_last_n: 64, top_k: 40 };
    /// R1.3, R2.1
    frequency_and_presence: { frequency_penalty: 0.4, presence_penalty: 0.3, top_k: 40 };
    /// R1.5, R2.1
    min_p: { min_p: 0.05 };
    /// R1.5, R2.1: 0 is off.
    min_p_of_0: { min_p: 0.0 };
    /// R1.5, R2.1: 1 keeps the maximum.
    min_p_of_1: { min_p: 1.0 };
    /// R1.6, R2.1
    top_k_then_top_p: { top_k: 50, top_p: 0.9 };
    /// R1.6, R2.1
    temperature_top_k_top_p: { temperature: 0.7, top_k: 50, top_p: 0.9 };
    /// R1.6, R2.1, R3.2: one launch.
    everything: {
        temperature: 0.7, top_k: 50, top_p: 0.9, min_p: 0.05, typical_p: 0.95, top_n_sigma: 2.0, xtc_probability: 0.5, xtc_threshold: 0.1,
        repetition_penalty: 1.1, frequency_penalty: 0.2, presence_penalty: 0.2, repeat_last_n: 1000, dry_multiplier: 0.8,
        logit_bias: [(11, 2.0), (151_935, -3.0)].into(),
    };
    /// R2.1
    dynamic_temperature: { dynatemp_range: 0.5 };
    /// R2.1
    smoothing: { smoothing_factor: 0.2 };
    /// R2.1
    mirostat: { mirostat: 2, mirostat_tau: 5.0 };
    /// R2.1
    adaptive_p: { adaptive_target: 0.3, min_p: 0.01 };
    /// R2.1
    typical: { typical_p: 0.9 };
}

/// R3.1: the draw by prefix sums. Both ends of the interval of uniform numbers that a token's weight gives it, for tokens all over the vocabulary.
fn check_intervals(params: SamplingParams, spec: &RowSpec, vocab: usize) {
    let logits = spec.make(vocab);
    let temperature = params.temperature.unwrap_or(1.0);
    let params = compile(params, vocab);
    let known = draws::Known {
        logits: &logits,
        params: &params,
        kept: (0..vocab as u32).collect(),
        temperature,
    };
    let step = (vocab / 97).max(1);
    for options in ways() {
        known
            .check_intervals(&mut OnDevice::new(options), (0..vocab).step_by(step))
            .unwrap_or_else(|error| panic!("{options:?}: {error}"));
    }
}

/// R3.1
#[test]
#[ignore = "needs a GPU"]
fn intervals_of_a_flat_row() {
    check_intervals(
        SamplingParams::default(),
        &RowSpec::plain(Shape::Flat, 1),
        VOCAB,
    );
}

/// R3.1
#[test]
#[ignore = "needs a GPU"]
fn intervals_of_a_peaked_row() {
    check_intervals(
        SamplingParams::default(),
        &RowSpec::plain(Shape::Peaked, 2),
        VOCAB,
    );
}

/// R3.1
#[test]
#[ignore = "needs a GPU"]
fn intervals_of_a_hot_row() {
    let hot = SamplingParams {
        temperature: Some(4.0),
        ..SamplingParams::default()
    };
    check_intervals(hot, &RowSpec::plain(Shape::Bell(2.0), 3), VOCAB);
}

/// R3.1
#[test]
#[ignore = "needs a GPU"]
fn intervals_of_a_row_with_ties() {
    check_intervals(
        SamplingParams::default(),
        &RowSpec::plain(Shape::Ties, 4),
        32_000,
    );
}

/// R3.1: fewer tokens than threads.
#[test]
#[ignore = "needs a GPU"]
fn intervals_of_a_short_row() {
    check_intervals(
        SamplingParams::default(),
        &RowSpec::plain(Shape::Bell(1.0), 5),
        97,
    );
}

/// Neither the neighbours nor the place in a batch can be seen in a result.
#[test]
#[ignore = "needs a GPU"]
fn a_batch_is_its_rows() {
    let chains = [
        SamplingParams::default(),
        SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        SamplingParams {
            top_k: Some(50),
            top_p: Some(0.9),
            repetition_penalty: Some(1.2),
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: Some(0.95),
            temperature: Some(1.3),
            ..SamplingParams::default()
        },
        SamplingParams {
            typical_p: Some(0.8),
            dynatemp_range: Some(0.4),
            ..SamplingParams::default()
        },
    ];
    let vocab = 32_000;
    let params: Vec<_> = chains
        .into_iter()
        .map(|params| compile(params, vocab))
        .collect();
    for count in [1, 5, 33, 64, 67, 133, 300, 1024] {
        let logits: Vec<Vec<f32>> = (0..count)
            .map(|row| RowSpec::plain(Shape::Peaked, row as u64 % 50).make(vocab))
            .collect();
        let states: Vec<SamplerState> = (0..count)
            .map(|row| SamplerState::new(&params[row % 5], &[row as u32, 3, 3]))
            .collect();
        let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
        for mode in [LogprobsMode::Raw, LogprobsMode::Processed] {
            let mut rows: Vec<Row<'_>> = (0..count)
                .map(|row| {
                    let logits = LogitsRow::F32(&logits[row]);
                    let mut row = Row::new(logits, &params[row % 5], &states[row]);
                    row.logprobs.mode = mode;
                    row
                })
                .collect();
            let mut host = Vec::new();
            CpuSampler::new().sample_batch(&rows, &mut host);
            let mut tokens = Vec::new();
            for turn in [0, count / 3] {
                rows.rotate_left(turn);
                host.rotate_left(turn);
                device
                    .sample_batch(&rows, &mut tokens)
                    .expect("the launch succeeds");
                assert_eq!(
                    tokens.iter().map(bits).collect::<Vec<_>>(),
                    host.iter().map(bits).collect::<Vec<_>>(),
                    "{count} rows, {mode:?}"
                );
            }
        }
    }
}

/// A row with NaN and a row without any token fail alone.
#[test]
#[ignore = "needs a GPU"]
fn a_failed_row_fails_alone() {
    let params = compile(SamplingParams::default(), 1000);
    let state = SamplerState::new(&params, &[]);
    let good = RowSpec::plain(Shape::Bell(1.0), 1).make(1000);
    let mut nan = good.clone();
    nan[500] = f32::NAN;
    let empty = vec![f32::NEG_INFINITY; 1000];
    let rows = [&nan, &good, &empty, &good]
        .map(|logits| Row::new(LogitsRow::F32(logits), &params, &state));
    let mut tokens = Vec::new();
    CudaSampler::new(CudaOptions::default())
        .and_then(|mut device| device.sample_batch(&rows, &mut tokens))
        .expect("the launch succeeds");
    let status: Vec<Status> = tokens.iter().map(|token| token.status).collect();
    assert_eq!(status, [Status::Nan, Status::Ok, Status::Empty, Status::Ok]);
    assert_eq!(bits(&tokens[1]), bits(&tokens[3]));
}

#[test]
#[ignore = "needs a GPU"]
fn rows_of_different_lengths_are_refused() {
    let params = compile(SamplingParams::default(), 10);
    let state = SamplerState::new(&params, &[]);
    let rows = [&[0.0; 10][..], &[0.0; 9][..]]
        .map(|logits| Row::new(LogitsRow::F32(logits), &params, &state));
    let error = CudaSampler::new(CudaOptions::default())
        .and_then(|mut device| device.sample_batch(&rows, &mut Vec::new()))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "row_len is 9, but must be 10 logits of type F32, as in the first row"
    );
}

/// Requests that read the history or learn.
fn remembering(vocab: usize) -> Vec<CompiledParams> {
    let chains = [
        SamplingParams {
            repetition_penalty: Some(1.3),
            frequency_penalty: Some(0.5),
            top_k: Some(20),
            ..SamplingParams::default()
        },
        SamplingParams {
            dry_multiplier: Some(1.0),
            dry_allowed_length: Some(1),
            top_k: Some(5),
            ..SamplingParams::default()
        },
        SamplingParams {
            no_repeat_ngram_size: Some(2),
            top_p: Some(0.5),
            ..SamplingParams::default()
        },
        SamplingParams {
            mirostat: Some(2),
            mirostat_tau: Some(3.0),
            ..SamplingParams::default()
        },
        SamplingParams {
            mirostat: Some(1),
            ..SamplingParams::default()
        },
        SamplingParams {
            adaptive_target: Some(0.3),
            adaptive_decay: Some(0.8),
            top_k: Some(100),
            ..SamplingParams::default()
        },
    ];
    chains
        .into_iter()
        .map(|params| compile(params, vocab))
        .collect()
}

/// A sequence's tokens on the device and on the host, side by side for many steps: committed, rewound, forked, evicted and restored.
#[test]
#[ignore = "needs a GPU"]
fn a_slot_goes_on_as_the_state_does() {
    let vocab = 1000;
    let params = remembering(vocab);
    let count = params.len();
    let mut states: Vec<SamplerState> = params
        .iter()
        .map(|params| SamplerState::new(params, &[5, 6, 7, 5, 6]))
        .collect();
    let mut host = CpuSampler::new();
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(2 * count as u32, 128).expect("memory");
    // Slots in another order than the rows.
    let slot = |row: usize| (2 * count - 1 - row) as u32;
    for (row, state) in states.iter().enumerate() {
        device
            .restore_slot(slot(row), state, SlotEnd::default())
            .expect("the slot is there");
    }
    let mut tokens = Vec::new();
    for step in 0..60 {
        let logits = RowSpec::plain(Shape::Bell(2.0), step).make(vocab);
        let all = vec![LogitsRow::F32(&logits); count];
        let mut rows: Vec<SlotRow<'_>> = (0..count)
            .map(|row| SlotRow::new(slot(row), &params[row]))
            .collect();
        // A launch that does not commit changes nothing.
        rows.iter_mut().for_each(|row| row.commit = false);
        device
            .sample_slots_from_host(&all, &rows, &mut tokens)
            .expect("the launch succeeds");
        let uncommitted: Vec<_> = tokens.iter().map(bits).collect();
        rows.iter_mut().for_each(|row| row.commit = true);
        device
            .sample_slots_from_host(&all, &rows, &mut tokens)
            .expect("the launch succeeds");
        let committed: Vec<_> = tokens.iter().map(bits).collect();
        assert_eq!(committed, uncommitted, "step {step}");
        for (row, state) in states.iter_mut().enumerate() {
            let sampled = host.sample(&Row::new(LogitsRow::F32(&logits), &params[row], state));
            assert_eq!(committed[row], bits(&sampled), "step {step}, row {row}");
            state.commit(&sampled);
        }
        let row = step as usize % count;
        match step % 4 {
            1 => {
                states[row].rewind(3);
                device
                    .rewind_slot(slot(row), &states[row])
                    .expect("the slot is there");
            }
            2 => {
                let fork = states[row].fork(7);
                device
                    .fork_slot(slot(row), 0, &fork, SlotEnd::default())
                    .expect("the slots are there");
                device.free_slot(slot(row));
                // Back to where it was, as the other completion.
                device
                    .fork_slot(0, slot(row), &fork, SlotEnd::default())
                    .expect("the slots are there");
                states[row] = fork;
            }
            3 => {
                device.free_slot(slot(row));
                let refused = device.sample_slots_from_host(&all, &rows, &mut tokens);
                assert!(matches!(
                    refused,
                    Err(CudaError::Batch { field: "slot", .. })
                ));
                device
                    .restore_slot(slot(row), &states[row], SlotEnd::default())
                    .expect("the slot is there");
            }
            _ => {}
        }
    }
}

/// Slots that end: at one of their ids, wherever it is in the list, and at no other, also where the list has all bits. What is drawn behind that is
/// nothing, and the slot stays as it was: forked it goes on as its state does, and rewound too.
#[test]
#[ignore = "needs a GPU"]
fn a_slot_ends_at_its_ids() {
    let many = |count: usize, vocab| remembering(vocab).into_iter().cycle().take(count).collect();
    let exact = CudaOptions {
        exact_path: true,
        ..CudaOptions::default()
    };
    ends_at_its_ids(CudaOptions::default(), 1000, remembering(1000));
    ends_at_its_ids(exact, 1000, remembering(1000));
    // Few and many rows of a large vocabulary, and rows drawn from as they are, go different ways.
    ends_at_its_ids(CudaOptions::default(), VOCAB, many(2, VOCAB));
    ends_at_its_ids(CudaOptions::default(), VOCAB, many(70, VOCAB));
    let plain = [
        SamplingParams {
            top_k: Some(40),
            top_p: Some(0.95),
            ..SamplingParams::default()
        },
        SamplingParams::default(),
        SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: Some(0.9),
            ..SamplingParams::default()
        },
    ];
    for params in plain {
        for rows in [1, 12, 70] {
            ends_at_its_ids(
                CudaOptions::default(),
                VOCAB,
                vec![compile(params.clone(), VOCAB); rows],
            );
        }
    }
}

fn ends_at_its_ids(options: CudaOptions, vocab: usize, params: Vec<CompiledParams>) {
    const STEPS: u64 = 12;
    let count = params.len();
    let mut host = CpuSampler::new();
    let mut states: Vec<SamplerState> = params
        .iter()
        .map(|params| SamplerState::new(params, &[5, 6, 7, 5, 6]))
        .collect();
    let logits: Vec<Vec<f32>> = (0..STEPS)
        .map(|step| RowSpec::plain(Shape::Bell(2.0), step).make(vocab))
        .collect();
    let draw = |host: &mut CpuSampler, row: usize, step: usize, state: &SamplerState| {
        let logits = LogitsRow::F32(&logits[step]);
        host.sample(&Row::new(logits, &params[row], state))
    };
    let mut device = CudaSampler::new(options).expect("a CUDA device");
    device.reserve_slots(count as u32 + 1, 64).expect("memory");
    // Each ends with the token of another step, or sooner if that comes before.
    let mut ends: Vec<Vec<u32>> = Vec::new();
    let stop_step = |row: usize| 2 + row % (STEPS as usize - 4);
    for (row, state) in states.iter().enumerate() {
        let mut ahead = state.clone();
        for step in 0..=stop_step(row) {
            let token = draw(&mut host, row, step, &ahead);
            ahead.commit(&token);
        }
        let stop = *ahead.tokens().last().expect("it has tokens");
        let mut stop_ids: Vec<u32> = (1..=row as u32 % MAX_STOPS as u32)
            .map(|turn| stop + 7919 * turn)
            .collect();
        stop_ids.insert(row / 3 % (stop_ids.len() + 1), stop);
        let end = SlotEnd {
            stop_ids: &stop_ids,
            capacity: None,
        };
        device
            .restore_slot(row as u32, state, end)
            .expect("the slot is there");
        ends.push(stop_ids);
    }
    let rows: Vec<SlotRow<'_>> = (0..count)
        .map(|row| SlotRow::new(row as u32, &params[row]))
        .collect();
    let mut ended = vec![false; count];
    let mut tokens = Vec::new();
    for (step, logits) in logits.iter().enumerate() {
        let all = vec![LogitsRow::F32(logits); count];
        device
            .sample_slots_from_host(&all, &rows, &mut tokens)
            .expect("the launch succeeds");
        for (row, state) in states.iter_mut().enumerate() {
            if ended[row] {
                assert_eq!(tokens[row].status, Status::Ended, "step {step}, row {row}");
                assert_eq!(
                    (tokens[row].token_id, tokens[row].kept_count),
                    (NO_TOKEN, 0)
                );
                continue;
            }
            let sampled = draw(&mut host, row, step, state);
            assert_eq!(bits(&tokens[row]), bits(&sampled), "step {step}, row {row}");
            state.commit(&sampled);
            ended[row] = ends[row].contains(&sampled.token_id);
        }
    }
    assert!(ended.iter().all(|&ended| ended));
    for (row, state) in states.iter().enumerate() {
        let spare = count as u32;
        let again = draw(&mut host, row, 0, state);
        device
            .fork_slot(row as u32, spare, state, SlotEnd::default())
            .expect("the slots are there");
        device
            .rewind_slot(row as u32, state)
            .expect("the slot is there");
        for slot in [spare, row as u32] {
            let logits = [LogitsRow::F32(&logits[0])];
            device
                .sample_slots_from_host(&logits, &[SlotRow::new(slot, &params[row])], &mut tokens)
                .expect("the launch succeeds");
            assert_eq!(bits(&tokens[0]), bits(&again), "row {row}, slot {slot}");
        }
    }
}

/// The first slot, of a sequence of three tokens, takes a fourth and refuses a fifth.
fn expect_room_for_one(device: &mut CudaSampler, params: &CompiledParams) {
    let (logits, row) = ([0.0; 10], SlotRow::new(0, params));
    let logits = [LogitsRow::F32(&logits)];
    let mut tokens = Vec::new();
    device
        .sample_slots_from_host(&logits, &[row], &mut tokens)
        .expect("there is room");
    let error = device
        .sample_slots_from_host(&logits, &[row], &mut tokens)
        .unwrap_err();
    assert_eq!(error.to_string(), "slot length is 5, but must be at most 4");
}

/// A slot may be told a smaller end than there is room for, and only so many ids.
#[test]
#[ignore = "needs a GPU"]
fn a_slot_has_an_end() {
    let params = compile(SamplingParams::default(), 10);
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(1, 64).expect("memory");
    let state = SamplerState::new(&params, &[1, 2, 3]);
    let end = |stop_ids, capacity| SlotEnd { stop_ids, capacity };
    let many = [9; MAX_STOPS + 1];
    let refused = device.restore_slot(0, &state, end(&many, None));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "stop_ids is 17, but must be at most 16"
    );
    device
        .restore_slot(0, &state, end(&[], Some(4)))
        .expect("the slot is there");
    expect_room_for_one(&mut device, &params);
}

/// Two draws queued before the first is collected, over rows of logits that lie on the device, some read by several slots and some by none;
/// 16-bit rows among them. The tokens are the host's, in the order of the rows, and those of the latest draw lie on the device.
#[test]
#[ignore = "needs a GPU"]
fn draws_are_collected_one_behind() {
    let vocab = 1000;
    let params = remembering(vocab);
    let count = params.len();
    let mut host = CpuSampler::new();
    // Logits lie in another sampler's memory: any sampler on the stream reads them.
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(count as u32, 128).expect("memory");
    let mut states: Vec<SamplerState> = params
        .iter()
        .map(|params| SamplerState::new(params, &[5, 6, 7, 5, 6]))
        .collect();
    for (slot, state) in (0..).zip(&states) {
        device
            .restore_slot(slot, state, SlotEnd::default())
            .expect("the slot is there");
    }
    let mut queued: std::collections::VecDeque<Vec<SampledToken>> = Default::default();
    let expect = |drawn: &[Result<SampledToken, CudaError>], expected: &[SampledToken]| {
        let drawn: Vec<_> = drawn
            .iter()
            .map(|token| bits(token.as_ref().expect("a token")))
            .collect();
        let expected: Vec<_> = expected.iter().map(bits).collect();
        assert_eq!(drawn, expected);
    };
    let mut drawn = Vec::new();
    for step in 0..40_u64 {
        let logits: Vec<Vec<f32>> = (0..5)
            .map(|row| RowSpec::plain(Shape::Bell(2.0), 5 * step + row).make(vocab))
            .collect();
        let rows: Vec<LogitsRow<'_>> = logits.iter().map(|row| LogitsRow::F32(row)).collect();
        let lying = device
            .place_rows(&rows)
            .expect("memory")
            .expect("there are rows");
        // 0, 2, 2, 2, 3, 4, 4 ... : row 1 is nobody's.
        let places: Vec<u32> = (0..count as u32)
            .map(|slot| [0, 2, 2, 2, 3, 4][slot.min(5) as usize])
            .collect();
        let placed: Vec<PlacedRow<'_>> = (0..)
            .zip(&params)
            .zip(&places)
            .map(|((slot, params), &logits_row)| PlacedRow {
                logits_row,
                row: SlotRow::new(slot, params),
            })
            .collect();
        device
            .queue_slots(&lying, &placed)
            .expect("the launches succeed");
        let expected: Vec<SampledToken> = (0..count)
            .map(|slot| {
                let row = Row::new(rows[places[slot] as usize], &params[slot], &states[slot]);
                let token = host.sample(&row);
                states[slot].commit(&token);
                token
            })
            .collect();
        queued.push_back(expected);
        if queued.len() == MAX_QUEUED {
            let refused = device.queue_slots(&lying, &placed);
            assert!(matches!(
                refused,
                Err(CudaError::Batch {
                    field: "queued draws",
                    ..
                })
            ));
            device.collect(&mut drawn).expect("the device is well");
            expect(&drawn, &queued.pop_front().expect("it is queued"));
        }
        let mut copied = Vec::new();
        device
            .read_row(&lying, 3, &mut copied)
            .expect("the row is there");
        assert_eq!(copied, logits[3]);
    }
    device.collect(&mut drawn).expect("the device is well");
    expect(&drawn, &queued.pop_front().expect("it is queued"));
    device.collect(&mut drawn).expect("nothing is queued");
    assert!(drawn.is_empty());
}

/// The likeliest tokens of slots' rows are the host's, bit for bit, of either distribution: of every type of logits, of rows with ties, holes, NaN and infinities, where some
/// rows of a draw want them and others do not, and several read one row of logits; two draws are queued before the first is collected.
#[test]
#[ignore = "needs a GPU"]
fn draws_tell_the_likeliest_tokens() {
    const COUNTS: [u32; 7] = [0, 1, 0, 5, 20, 128, 0];
    let (vocab, count) = (32_001, COUNTS.len());
    let chains = [
        SamplingParams::default(),
        SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        // The choice is rarely among the likeliest.
        SamplingParams {
            temperature: Some(3.0),
            logit_bias: Some([(3, -100.0)].into()),
            ..SamplingParams::default()
        },
    ];
    let mut params: Vec<_> = chains
        .into_iter()
        .map(|params| compile(params, vocab))
        .collect();
    params.extend(remembering(vocab));
    params.truncate(count);
    let mut host = CpuSampler::new();
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(count as u32, 128).expect("memory");
    let mut states: Vec<SamplerState> = params
        .iter()
        .map(|params| SamplerState::new(params, &[5, 6, 7]))
        .collect();
    for (slot, state) in (0..).zip(&states) {
        device
            .restore_slot(slot, state, SlotEnd::default())
            .expect("the slot is there");
    }
    let mut queued = std::collections::VecDeque::new();
    let mut told = 0;
    let mut check = |device: &mut CudaSampler, expected: Vec<(u32, Vec<TokenLogprob>)>| {
        let (mut drawn, mut top) = (Vec::new(), Vec::new());
        device
            .collect_with_top(&mut drawn, &mut top)
            .expect("the device is well");
        let bits = |list: &[TokenLogprob]| -> Vec<(u32, u32)> {
            list.iter()
                .map(|entry| (entry.token_id, entry.logprob.to_bits()))
                .collect()
        };
        for (row, (id, expected)) in expected.iter().enumerate() {
            assert_eq!(
                drawn[row].as_ref().expect("a token").token_id,
                *id,
                "row {row}"
            );
            assert_eq!(bits(&top[row]), bits(expected), "row {row}");
            told += expected.len();
        }
    };
    for step in 0..36_u64 {
        let rows: Vec<Logits> = (0..4)
            .map(|row| {
                let mut logits = RowSpec::plain(
                    [Shape::Bell(2.0), Shape::Peaked][(step % 2) as usize],
                    4 * step + row,
                )
                .make(vocab);
                match (step + row) % 6 {
                    // Ties, of more tokens than are told.
                    0 => logits.iter_mut().for_each(|x| *x = x.round()),
                    // Few tokens.
                    1 => logits[3..].iter_mut().for_each(|x| *x = f32::NEG_INFINITY),
                    // All alike.
                    2 => logits.fill(-0.0),
                    _ => {}
                }
                Logits::new(logits)
            })
            .collect();
        let rows: Vec<LogitsRow<'_>> = rows
            .iter()
            .map(|row| row.rows()[step as usize % 3])
            .collect();
        let lying = device
            .place_rows(&rows)
            .expect("memory")
            .expect("there are rows");
        let places: Vec<u32> = [0, 1, 1, 1, 2, 3, 3].to_vec();
        let placed: Vec<PlacedRow<'_>> = (0..count)
            .map(|row| PlacedRow {
                logits_row: places[row],
                row: SlotRow {
                    top: COUNTS[(row + step as usize) % count],
                    logprobs: [LogprobsMode::Raw, LogprobsMode::Processed]
                        [(row + step as usize / 2) % 2],
                    ..SlotRow::new(row as u32, &params[row])
                },
            })
            .collect();
        device
            .queue_slots(&lying, &placed)
            .expect("the launch succeeds");
        let mut expected = Vec::new();
        for (row, placed) in placed.iter().enumerate() {
            let mut work = Row::new(rows[placed.logits_row as usize], &params[row], &states[row]);
            work.logprobs = Logprobs {
                top: placed.row.top,
                mode: placed.row.logprobs,
            };
            let sampled = host.sample(&work);
            let top = if placed.row.top > 0 && sampled.status == Status::Ok {
                host.top_logprobs(&work, &sampled)
            } else {
                Vec::new()
            };
            expected.push((sampled.token_id, top));
            states[row].commit(&sampled);
        }
        queued.push_back(expected);
        if queued.len() == MAX_QUEUED {
            check(&mut device, queued.pop_front().expect("a draw"));
        }
    }
    for expected in queued {
        check(&mut device, expected);
    }
    assert!(told > 3000, "{told} entries");
    let row = SlotRow {
        top: MAX_TOP + 1,
        ..SlotRow::new(0, &params[0])
    };
    let lying = device.place_rows(&[LogitsRow::F32(&[0.0; 8])]);
    let lying = lying.expect("memory").expect("a row");
    let refused = device.queue_slots(&lying, &[PlacedRow { logits_row: 0, row }]);
    assert!(matches!(
        refused,
        Err(CudaError::Batch { field: "top", .. })
    ));
}

/// A row without a token does not grow its slot, and the others go on.
#[test]
#[ignore = "needs a GPU"]
fn a_row_without_a_token_leaves_its_slot() {
    let params = compile(SamplingParams::default(), 10);
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(2, 16).expect("memory");
    let mut state = SamplerState::new(&params, &[1, 2, 3]);
    for slot in 0..2 {
        device
            .restore_slot(slot, &state, SlotEnd::default())
            .expect("the slot is there");
    }
    let (good, bad) = ([0.0; 10], [f32::NAN; 10]);
    let rows = [0, 1].map(|slot| SlotRow::new(slot, &params));
    let mut tokens = Vec::new();
    for logits in [[&good, &bad], [&good, &good]] {
        let logits = logits.map(|row| LogitsRow::F32(row));
        device
            .sample_slots_from_host(&logits, &rows, &mut tokens)
            .expect("the launch succeeds");
    }
    // Slot 1 draws its first token now.
    let first = CpuSampler::new().sample(&Row::new(LogitsRow::F32(&good), &params, &state));
    assert_eq!(bits(&tokens[1]), bits(&first));
    state.commit(&first);
    device
        .fork_slot(1, 0, &state, SlotEnd::default())
        .expect("it has as many tokens as the state");
}

#[test]
#[ignore = "needs a GPU"]
fn a_device_says_what_it_is() {
    let info = device_info(0).expect("a device");
    let memory = device_memory(0).expect("a device");
    assert!(!info.name.is_empty() && info.multiprocessors > 0 && info.compute_capability.0 >= 9);
    assert!(memory.free_bytes <= memory.total_bytes && memory.total_bytes <= info.total_bytes);
    assert!(
        driver_version()
            .expect("the runtime answers")
            .expect("a driver")
            >= runtime_version().expect("it too")
    );
    println!("{info:?} {memory:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn a_full_slot_is_refused() {
    let params = compile(SamplingParams::default(), 10);
    let mut device = CudaSampler::new(CudaOptions::default()).expect("a CUDA device");
    device.reserve_slots(1, 4).expect("memory");
    let long = SamplerState::new(&params, &[1; 5]);
    assert!(device.restore_slot(0, &long, SlotEnd::default()).is_err());
    device
        .restore_slot(
            0,
            &SamplerState::new(&params, &[1, 2, 3]),
            SlotEnd::default(),
        )
        .expect("the slot is there");
    expect_room_for_one(&mut device, &params);
}

macro_rules! parity {
    ($($name:ident: $vocab:expr, $cases:expr;)*) => {$(
        proptest! {
            #![proptest_config(ProptestConfig {
                max_shrink_iters: 300,
                failure_persistence: None,
                ..ProptestConfig::with_cases($cases)
            })]

            #[test]
            #[ignore = "needs a GPU"]
            fn $name(spec in row_spec(), request in request($vocab), way in 0..10usize) {
                check_random(&spec, $vocab, &request, way)?;
            }
        }
    )*};
}

// Random requests over every parameter, order and preset.
parity! {
    vocabulary_of_1: 1, 100;
    vocabulary_of_2: 2, 100;
    vocabulary_of_111: 111, 2000;
    vocabulary_of_5000: 5000, 2000;
    vocabulary_of_32000: 32_000, 300;
    vocabulary_of_151936: 151_936, 60;
}

fn check_random(
    spec: &RowSpec,
    vocab: u32,
    request: &Request,
    way: usize,
) -> Result<(), TestCaseError> {
    let Some((params, state)) = request.compile(vocab) else {
        return Ok(());
    };
    let logits = Logits::new(spec.make(vocab as usize));
    let options = ways().nth(way).unwrap_or_default();
    let mut device = CudaSampler::new(options).expect("a CUDA device");
    for row in logits.rows() {
        let mut row = request.row(row, &params, &state);
        row.logprobs.top = 0;
        match device.sample(&row) {
            Ok(got) => prop_assert_eq!(bits(&got), bits(&CpuSampler::new().sample(&row))),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }
    Ok(())
}
