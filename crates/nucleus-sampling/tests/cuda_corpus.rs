//! Writes the cases that the CUDA kernels are held against: random rows and requests with what the reference makes of them, as the plain data
//! of `cuda/include/sampling_config.h`. `cuda/tests/` reads the file, on the host and on a device.
//!
//! `NUCLEUS_CUDA_CORPUS=FILE cargo test -p nucleus-sampling --test cuda_corpus -- --ignored` writes FILE.

use half::{bf16, f16};
use nucleus_sampling::{
    CompiledParams, LogitsRow, Logprobs, LogprobsMode, NO_TOKEN, OpCode, ReferenceSampler, Row,
    SampledToken, Sampler, SamplerState, SamplingParams, Stage, Status, VocabInfo, philox4x32_10,
};

/// Deterministic numbers.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        let words = philox4x32_10([self.0, 0, 0, 5], [3, 4]);
        u64::from(words[0]) << 32 | u64::from(words[1])
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn chance(&mut self, p: f64) -> bool {
        self.fraction() < p
    }

    fn bell(&mut self) -> f64 {
        (0..6).map(|_| self.fraction()).sum::<f64>() * 2f64.sqrt() - 18f64.sqrt()
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// The file's bytes, little endian.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn f32(&mut self, value: f32) {
        self.u32(value.to_bits());
    }
}

/// 32-bit words that rows index.
#[derive(Default)]
struct Arena(Vec<u32>);

/// `SamplingList`.
#[derive(Clone, Copy, Default)]
struct List {
    offset: u64,
    len: u32,
}

impl Arena {
    fn words(&mut self, words: &[u32], len: usize) -> List {
        let offset = self.0.len() as u64;
        self.0.extend(words);
        List {
            offset,
            len: len as u32,
        }
    }

    fn ids(&mut self, ids: &[u32]) -> List {
        self.words(ids, ids.len())
    }

    fn sequences(&mut self, sequences: &[Vec<u32>]) -> List {
        let mut words = vec![0];
        for sequence in sequences {
            words.push(words[words.len() - 1] + sequence.len() as u32);
        }
        words.extend(sequences.iter().flatten());
        self.words(&words, sequences.len())
    }
}

fn put_list(bytes: &mut Bytes, list: List) {
    bytes.u64(list.offset);
    bytes.u32(list.len);
    bytes.u32(0);
}

/// `SamplingConfig`, field by field in the header's order.
fn put_config(bytes: &mut Bytes, params: &CompiledParams) {
    let c = params.config();
    bytes.u64(c.seed);
    let floats = [
        c.temperature,
        c.dynatemp_range,
        c.dynatemp_exponent,
        c.smoothing_factor,
        c.smoothing_curve,
        c.top_p,
        c.min_p,
        c.typical_p,
        c.top_n_sigma,
        c.epsilon_cutoff,
        c.eta_cutoff,
        c.top_a,
        c.tfs_z,
        c.xtc_probability,
        c.xtc_threshold,
        c.repetition_penalty,
        c.frequency_penalty,
        c.presence_penalty,
        c.dry_multiplier,
        c.dry_base,
        c.mirostat_tau,
        c.mirostat_eta,
        c.adaptive_target,
        c.adaptive_decay,
    ];
    floats.into_iter().for_each(|x| bytes.f32(x));
    let integers = [
        c.top_k,
        c.min_keep,
        c.repeat_last_n,
        c.dry_allowed_length,
        c.dry_penalty_last_n,
        c.no_repeat_ngram_size,
        c.min_tokens,
        c.mirostat,
        c.vocab_size,
        c.flags,
    ];
    integers.into_iter().for_each(|x| bytes.u32(x));
}

fn put_program(bytes: &mut Bytes, params: &CompiledParams) {
    let ops = params.tables().program.ops();
    for index in 0..16 {
        let op = ops.get(index);
        bytes.u32(op.map_or(OpCode::None, |op| op.code) as u32);
        bytes.f32(op.map_or(0.0, |op| op.arg));
        bytes.u64(op.map_or(0, |op| op.threshold));
    }
    bytes.u32(ops.len() as u32);
    bytes.u32(0);
}

fn put_sampled(bytes: &mut Bytes, sampled: &SampledToken) {
    bytes.u32(sampled.token_id);
    bytes.f32(sampled.logprob);
    bytes.u32(sampled.kept_count);
    bytes.u32(sampled.status as u32);
    bytes.u32(sampled.feedback as u32);
}

/// How many of the likeliest tokens are told of each row.
const TOP: usize = 8;

/// The likeliest tokens of what a row draws from, as `launch_top_processed` tells them.
fn put_top(bytes: &mut Bytes, row: Row<'_>, sampled: &SampledToken) {
    let row = Row {
        logprobs: Logprobs {
            top: TOP as u32,
            mode: LogprobsMode::Processed,
        },
        ..row
    };
    let top = ReferenceSampler::new().top_logprobs(&row, sampled);
    let missing = match sampled.status {
        Status::Ok => f32::NEG_INFINITY,
        _ => f32::NAN,
    };
    let told = top.iter().map(|entry| (entry.token_id, entry.logprob));
    for (id, logprob) in told.chain(std::iter::repeat((NO_TOKEN, missing))).take(TOP) {
        bytes.u32(id);
        bytes.f32(logprob);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// Logits in their type.
enum Logits {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Logits {
    fn new(values: &[f32], dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::F16 => Self::F16(values.iter().map(|x| f16::from_f32(*x)).collect()),
            Dtype::Bf16 => Self::Bf16(values.iter().map(|x| bf16::from_f32(*x)).collect()),
        }
    }

    fn row(&self, from: usize, len: usize) -> LogitsRow<'_> {
        match self {
            Self::F32(all) => LogitsRow::F32(&all[from..from + len]),
            Self::F16(all) => LogitsRow::F16(&all[from..from + len]),
            Self::Bf16(all) => LogitsRow::Bf16(&all[from..from + len]),
        }
    }

    fn put(&self, bytes: &mut Bytes) {
        match self {
            Self::F32(all) => all.iter().for_each(|x| bytes.f32(*x)),
            Self::F16(all) => all.iter().for_each(|x| bytes.0.extend(x.to_le_bytes())),
            Self::Bf16(all) => all.iter().for_each(|x| bytes.0.extend(x.to_le_bytes())),
        }
    }
}

/// A row of one of several shapes.
fn logits(numbers: &mut Numbers, len: usize) -> Vec<f32> {
    let width = numbers.pick(&[0.05, 1.0, 2.0, 5.0]);
    let mut row: Vec<f32> = (0..len).map(|_| (numbers.bell() * width) as f32).collect();
    let shape = numbers.below(10);
    match shape {
        0 => row.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0),
        1 => row
            .iter_mut()
            .step_by(3)
            .for_each(|x| *x = f32::NEG_INFINITY),
        2 => row.fill(numbers.pick(&[1.5, -0.0])),
        3 => {
            let at = numbers.below(len);
            row[at] = f32::NAN;
        }
        4 => {
            row.fill(-1e9);
            let at = numbers.below(len);
            row[at] = 3.0;
        }
        5 if numbers.chance(0.5) => row.iter_mut().for_each(|x| *x = -x.abs()),
        // Rounded towards zero: ties at -0.
        5 => row.iter_mut().for_each(|x| *x = -x.abs().floor()),
        6 if len > 4 => {
            let at = numbers.below(len);
            row[at] = numbers.pick(&[f32::INFINITY, 1e20, -0.0, f32::NEG_INFINITY]);
        }
        _ => {
            for _ in 0..20.min(len) {
                let at = numbers.below(len);
                row[at] += (numbers.fraction() * 8.0 + 6.0) as f32;
            }
        }
    }
    row
}

/// A request of a few parameters.
fn params(numbers: &mut Numbers, vocab: u32) -> SamplingParams {
    let mut p = SamplingParams {
        seed: Some(numbers.next() >> 11),
        preset: Some(
            numbers
                .pick(&["default", "default", "llama.cpp", "vllm", "hf"])
                .to_owned(),
        ),
        ..Default::default()
    };
    let usual = numbers.below(8);
    if usual == 0 {
        return p;
    }
    if usual < 6 || numbers.chance(0.5) {
        p.temperature = Some(numbers.pick(&[0.0, 0.7, 0.7, 1.0, 1.5, 0.3, 4.0]));
    }
    let density = numbers.pick(&[0.1, 0.25, 0.5]);
    let on = |numbers: &mut Numbers| numbers.chance(density);
    if numbers.chance(0.5) {
        p.top_k = Some(numbers.pick(&[1, 2, 5, 40, 50, 50, 200, 1000, 3000, 5000]));
    }
    if numbers.chance(0.4) {
        p.top_p = Some(numbers.pick(&[0.0, 0.3, 0.9, 0.9, 0.99, 0.9999]));
    }
    if numbers.chance(0.4) {
        p.min_p = Some(numbers.pick(&[0.05, 0.05, 1.0, 0.3, 1e-4]));
    }
    if on(numbers) {
        p.dynatemp_range = Some(numbers.pick(&[0.3, 1.0]));
        p.dynatemp_exponent = Some(numbers.pick(&[1.0, 0.5, 2.0]));
    }
    if on(numbers) {
        p.smoothing_factor = Some(numbers.pick(&[0.2, 2.0]));
        p.smoothing_curve = Some(numbers.pick(&[1.0, 1.5, 3.0]));
    }
    if on(numbers) {
        p.typical_p = Some(numbers.pick(&[0.0, 0.2, 0.9, 0.99]));
    }
    if on(numbers) {
        p.top_n_sigma = Some(numbers.pick(&[0.5, 1.0, 3.0]));
    }
    if on(numbers) {
        p.epsilon_cutoff = Some(numbers.pick(&[1e-6, 1e-4, 3e-3, 0.5]));
    }
    if on(numbers) {
        p.eta_cutoff = Some(numbers.pick(&[1e-5, 1e-3, 0.3]));
    }
    if on(numbers) {
        p.top_a = Some(numbers.pick(&[0.05, 0.5, 1.0]));
    }
    if on(numbers) && p.top_k.is_some_and(|k| k <= 4096 && k < i64::from(vocab)) {
        p.tfs_z = Some(numbers.pick(&[0.3, 0.9, 0.99]));
    }
    if on(numbers) {
        p.xtc_probability = Some(numbers.pick(&[0.5, 1.0]));
        p.xtc_threshold = Some(numbers.pick(&[0.001, 0.05, 0.1]));
    }
    if on(numbers) {
        p.min_keep = Some(numbers.pick(&[2, 10, 500]));
    }
    if numbers.chance(0.4) {
        p.repetition_penalty = Some(numbers.pick(&[1.1, 1.5, 0.8]));
        p.frequency_penalty = Some(numbers.pick(&[0.0, 0.2, -0.5]));
        p.presence_penalty = Some(numbers.pick(&[0.0, 0.2]));
        p.repeat_last_n = Some(numbers.pick(&[-1, 64, 5, 1000]));
    }
    if numbers.chance(0.3) {
        p.dry_multiplier = Some(numbers.pick(&[0.8, 3.0]));
        p.dry_base = Some(numbers.pick(&[1.75, 1.0, 4.0]));
        p.dry_allowed_length = Some(numbers.pick(&[1, 2, 4]));
        p.dry_penalty_last_n = Some(numbers.pick(&[-1, 64, 1024]));
        if numbers.chance(0.5) {
            let id = numbers.below(vocab as usize) as u32;
            p.dry_sequence_breakers = Some(vec![vec![id], vec![0, id % 2]]);
        }
    }
    if on(numbers) {
        p.no_repeat_ngram_size = Some(numbers.pick(&[1, 2, 3]));
    }
    if numbers.chance(0.3) {
        let count = numbers.pick(&[1, 16, 300]);
        p.logit_bias = Some(
            (0..count)
                .map(|_| (numbers.below(vocab as usize) as u32, numbers.bell() * 10.0))
                .collect(),
        );
    }
    if on(numbers) {
        let count = numbers.pick(&[1, 7, 6000]);
        p.allowed_token_ids = Some(
            (0..count)
                .map(|_| numbers.below(vocab as usize) as u32)
                .collect(),
        );
    }
    if on(numbers) {
        let id = |numbers: &mut Numbers| numbers.below(vocab.min(40) as usize) as u32;
        p.bad_words = Some(
            (0..5)
                .map(|_| (0..=numbers.below(2)).map(|_| id(numbers)).collect())
                .collect(),
        );
    }
    if on(numbers) {
        p.min_tokens = Some(5);
        p.ignore_eos = Some(numbers.chance(0.5));
    }
    if on(numbers) {
        p.mirostat = Some(numbers.pick(&[1, 2]));
        p.mirostat_tau = Some(numbers.pick(&[1.0, 3.0, 5.0]));
    } else if on(numbers) {
        p.adaptive_target = Some(numbers.pick(&[0.05, 0.3, 0.9]));
    }
    if numbers.chance(0.1) && p.tfs_z.is_none() {
        let mut names = Stage::ORDERED.map(Stage::name).map(str::to_owned).to_vec();
        for at in (1..names.len()).rev() {
            names.swap(at, numbers.below(at + 1));
        }
        p.samplers = Some(names);
    }
    p
}

/// "All on": what the published times are measured with.
fn all_on(numbers: &mut Numbers, vocab: u32) -> SamplingParams {
    SamplingParams {
        seed: Some(numbers.next() >> 11),
        temperature: Some(0.7),
        top_k: Some(50),
        top_p: Some(0.9),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.2),
        presence_penalty: Some(0.2),
        repeat_last_n: Some(1000),
        dry_multiplier: Some(0.8),
        dry_penalty_last_n: Some(1024),
        logit_bias: Some(
            (0..16)
                .map(|_| (numbers.below(vocab as usize) as u32, numbers.bell()))
                .collect(),
        ),
        ..Default::default()
    }
}

fn history(numbers: &mut Numbers, vocab: u32) -> (Vec<u32>, Vec<u32>) {
    let width = numbers.pick(&[3, 50, vocab as usize]).min(vocab as usize);
    let mut ids = |longest: usize| -> Vec<u32> {
        let len = numbers.below(longest + 1);
        (0..len).map(|_| numbers.below(width) as u32).collect()
    };
    (ids(900), ids(500))
}

/// Equal logits by the thousand, which a top_k that keeps ties all leaves to tfs.
fn tied_logits(numbers: &mut Numbers, len: usize) -> Vec<f32> {
    let floor = numbers.pick(&[-100.0, 1.0, 2.5]);
    let step = numbers.pick(&[4.0, 64.0, 1024.0]);
    (0..len)
        .map(|_| (numbers.bell() * step).round().max(floor * step) as f32 / step as f32)
        .collect()
}

fn tail_free(numbers: &mut Numbers) -> SamplingParams {
    SamplingParams {
        seed: Some(numbers.next() >> 11),
        preset: Some(numbers.pick(&["vllm", "hf"]).to_owned()),
        temperature: Some(numbers.pick(&[0.7, 1.0, 4.0, 50.0])),
        top_k: Some(numbers.pick(&[50, 1000, 4000])),
        tfs_z: Some(numbers.pick(&[0.1, 0.5, 0.95, 0.9999])),
        min_p: numbers.chance(0.3).then_some(1e-3),
        min_keep: numbers
            .chance(0.3)
            .then(|| numbers.pick(&[2, 100, 4094, 5000])),
        repetition_penalty: numbers.chance(0.3).then_some(1.3),
        ..Default::default()
    }
}

struct Spec {
    vocab: u32,
    row_len: usize,
    stride: usize,
    rows: usize,
    dtype: Dtype,
    /// Ties that a top_k keeps, then tfs; else any request on any row.
    tied: bool,
}

/// One batch and what the reference makes of its rows; returns how many rows have each status.
fn batch(numbers: &mut Numbers, spec: &Spec, file: &mut Bytes) {
    let Spec {
        vocab,
        row_len,
        stride,
        rows,
        dtype,
        tied,
    } = *spec;
    let eos = [0, vocab / 2];
    let info = VocabInfo::new(vocab).with_eos(&eos);
    let total = stride * (rows - 1) + row_len;
    let mut values = vec![f32::NAN; total];
    let distinct = if stride == 0 { 1 } else { rows };
    for row in 0..distinct {
        let logits = if tied { tied_logits } else { logits }(numbers, row_len);
        values[row * stride..row * stride + row_len].copy_from_slice(&logits);
    }
    let all = Logits::new(&values, dtype);
    let mask_words = row_len.div_ceil(32) - numbers.below(2).min(row_len.div_ceil(32) - 1);
    let masks: Vec<Vec<u32>> = (0..3)
        .map(|kind| {
            let sparse = [0.02, 0.5, 0.999][kind];
            (0..mask_words)
                .map(|_| {
                    (0..32).fold(0, |word, bit| {
                        word | u32::from(numbers.chance(sparse)) << bit
                    })
                })
                .collect()
        })
        .collect();
    let mut arena = Arena::default();
    let (mut row_bytes, mut configs, mut programs, mut expected, mut tops) = (
        Bytes::default(),
        Bytes::default(),
        Bytes::default(),
        Bytes::default(),
        Bytes::default(),
    );
    for index in 0..rows {
        let compiled = loop {
            let params = if tied {
                tail_free(numbers)
            } else if numbers.chance(0.1) {
                all_on(numbers, vocab)
            } else {
                params(numbers, vocab)
            };
            if let Ok(compiled) = params.validate(&info) {
                break compiled;
            }
        };
        let (prompt, output) = history(numbers, vocab);
        let mut state = SamplerState::new(&compiled, &prompt);
        output.iter().for_each(|id| state.commit_forced(*id));
        let state = state.fork(numbers.below(3) as u32);
        let mask = numbers.chance(0.2).then(|| numbers.below(masks.len()));
        let processed = numbers.chance(0.7);
        let row = Row {
            logits: all.row(index * stride, row_len),
            params: &compiled,
            state: &state,
            mask: mask.map(|index| masks[index].as_slice()),
            uniform: numbers
                .chance(0.2)
                .then(|| numbers.pick(&[0, u64::MAX, 1 << 63, 12345 << 40])),
            logprobs: Logprobs {
                top: 0,
                mode: if processed {
                    LogprobsMode::Processed
                } else {
                    LogprobsMode::Raw
                },
            },
        };
        let sampled = ReferenceSampler::new().sample(&row);
        put_sampled(&mut expected, &sampled);
        put_top(&mut tops, row, &sampled);
        put_config(&mut configs, &compiled);
        put_program(&mut programs, &compiled);
        put_row(&mut row_bytes, &mut arena, &row, index, mask);
    }
    for value in [
        dtype as u32,
        rows as u32,
        row_len as u32,
        mask_words as u32,
        masks.len() as u32,
        arena.0.len() as u32,
    ] {
        file.u32(value);
    }
    file.u64(stride as u64);
    file.u64(total as u64);
    for part in [row_bytes, configs, programs] {
        file.0.extend(part.0);
    }
    arena.0.iter().for_each(|word| file.u32(*word));
    masks.iter().flatten().for_each(|word| file.u32(*word));
    all.put(file);
    file.0.extend(std::iter::repeat_n(
        0,
        file.0.len().next_multiple_of(8) - file.0.len(),
    ));
    file.0.extend(expected.0);
    file.0.extend(std::iter::repeat_n(
        0,
        file.0.len().next_multiple_of(8) - file.0.len(),
    ));
    file.0.extend(tops.0);
}

/// `SamplingRow`.
fn put_row(bytes: &mut Bytes, arena: &mut Arena, row: &Row<'_>, index: usize, mask: Option<usize>) {
    let (tables, state) = (row.params.tables(), row.state);
    bytes.u64(row.uniform.unwrap_or(0));
    let bias: Vec<u32> = tables
        .bias
        .iter()
        .flat_map(|bias| [bias.token_id, bias.value.to_bits()])
        .collect();
    let lists = [
        arena.ids(state.tokens()),
        arena.words(&bias, tables.bias.len()),
        arena.ids(tables.allowed.as_deref().unwrap_or_default()),
        arena.sequences(&tables.bad_words),
        arena.sequences(&tables.breakers),
        arena.ids(&tables.eos),
    ];
    lists.into_iter().for_each(|list| put_list(bytes, list));
    let flags = u32::from(row.uniform.is_some())
        | u32::from(row.logprobs.mode == LogprobsMode::Processed) << 1
        | u32::from(tables.allowed.is_some()) << 2;
    for value in [
        state.prompt().len() as u32,
        index as u32,
        state.position(),
        state.choice(),
        state.attempt(),
        state.mirostat_mu() as u32,
        state.adaptive_target() as u32,
        mask.map_or(u32::MAX, |index| index as u32),
        flags,
        0,
    ] {
        bytes.u32(value);
    }
}

#[test]
#[ignore = "writes the file that NUCLEUS_CUDA_CORPUS names"]
fn write_the_corpus() {
    let path = std::env::var("NUCLEUS_CUDA_CORPUS").expect("NUCLEUS_CUDA_CORPUS names a file");
    let mut numbers = Numbers(0);
    let mut batches = Vec::new();
    for (vocab, count) in [
        (1u32, 4),
        (2, 6),
        (5, 30),
        (111, 60),
        (3000, 30),
        (6000, 20),
    ] {
        for _ in 0..count {
            let row_len = vocab as usize + numbers.pick(&[0, 0, 5]);
            let row_len = if vocab > 2 && numbers.chance(0.1) {
                row_len - 1
            } else {
                row_len
            };
            batches.push(Spec {
                vocab,
                row_len,
                stride: row_len + numbers.pick(&[0, 3, 8]),
                rows: numbers.pick(&[1, 17, 33]),
                dtype: numbers.pick(&[Dtype::F32, Dtype::F32, Dtype::F16, Dtype::Bf16]),
                tied: false,
            });
        }
    }
    for (vocab, count, rows) in [(32_000u32, 24, 16), (151_936, 22, 12)] {
        for index in 0..count {
            batches.push(Spec {
                vocab,
                row_len: vocab as usize,
                stride: 0,
                rows,
                dtype: [Dtype::F32, Dtype::Bf16, Dtype::F32, Dtype::F16][index % 4],
                tied: false,
            });
        }
    }
    for (vocab, count) in [(6000u32, 4), (32_000, 4), (151_936, 2)] {
        for index in 0..count {
            batches.push(Spec {
                vocab,
                row_len: vocab as usize,
                stride: 0,
                rows: 12,
                dtype: [Dtype::F32, Dtype::Bf16][index % 2],
                tied: true,
            });
        }
    }
    let mut file = Bytes::default();
    file.u32(0x3253_4C4E);
    file.u32(batches.len() as u32);
    for spec in &batches {
        batch(&mut numbers, spec, &mut file);
    }
    std::fs::write(path, file.0).expect("the file can be written");
}
