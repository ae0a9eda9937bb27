//! Any request on any row: samplers end with a token or a status, and agree on every bit.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use half::{bf16, f16};
use libfuzzer_sys::fuzz_target;
use nucleus_sampling::{
    Bound, CompiledParams, CpuOptions, CpuSampler, LogitsRow, Logprobs, LogprobsMode, PARAMS,
    ParamKind, ParamSpec, ParamValue, Preset, ReferenceSampler, Row, SampledToken, Sampler,
    SamplerState, SamplingParams, Stage, Status, TokenLogprob, Trace, VocabInfo,
};

const WAYS: [CpuOptions; 4] = [
    CpuOptions { simd: true, shortcuts: true },
    CpuOptions { simd: true, shortcuts: false },
    CpuOptions { simd: false, shortcuts: true },
    CpuOptions { simd: false, shortcuts: false },
];

/// Tokens chosen one after the other.
const STEPS: usize = 2;

#[derive(Debug)]
struct Input {
    params: SamplingParams,
    vocab: VocabInfo,
    prompt: Vec<u32>,
    output: Vec<u32>,
    rewinds: u8,
    choice: u32,
    position: Option<u32>,
    mask: Option<Vec<u32>>,
    uniform: Option<u64>,
    logprobs: Logprobs,
    dtype: u8,
    logits: Vec<u32>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let size = match u.int_in_range(0..=15)? {
            0 => u.arbitrary()?,
            1 => u.int_in_range(1..=6000)?,
            _ => u.int_in_range(1..=40)?,
        };
        let params = params(u, size)?;
        let mode = [LogprobsMode::Raw, LogprobsMode::Processed][usize::from(u.arbitrary::<bool>()?)];
        Ok(Self {
            params: through_json(params, u.arbitrary()?),
            vocab: VocabInfo::new(size).with_eos(&ids(u, size, 3)?),
            prompt: ids(u, size, 12)?,
            output: ids(u, size, 12)?,
            rewinds: u.int_in_range(0..=2)?,
            choice: u.arbitrary()?,
            position: u.arbitrary()?,
            mask: u.arbitrary::<Option<[u32; 2]>>()?.map(|words| words.to_vec()),
            uniform: u.arbitrary()?,
            logprobs: Logprobs { top: u.int_in_range(0..=30)?, mode },
            dtype: u.int_in_range(0..=2)?,
            logits: logits(u)?,
        })
    }
}

/// Some ids, few of them outside the vocabulary.
fn ids(u: &mut Unstructured<'_>, size: u32, most: usize) -> Result<Vec<u32>> {
    let count = u.int_in_range(0..=most)?;
    (0..count).map(|_| id(u, size)).collect()
}

fn id(u: &mut Unstructured<'_>, size: u32) -> Result<u32> {
    match u.int_in_range(0..=60)? {
        0 => u.arbitrary(),
        _ => u.int_in_range(0..=size.max(1) - 1),
    }
}

fn params(u: &mut Unstructured<'_>, size: u32) -> Result<SamplingParams> {
    let mut params = SamplingParams { seed: Some(u.arbitrary()?), ..Default::default() };
    for _ in 0..u.int_in_range(0..=10)? {
        let spec = u.choose(PARAMS)?;
        let value = value(u, spec, size)?;
        params.set(spec.name, value).expect("the parameter's type");
    }
    Ok(params)
}

fn value(u: &mut Unstructured<'_>, spec: &ParamSpec, size: u32) -> Result<ParamValue> {
    Ok(match spec.kind {
        ParamKind::Float => ParamValue::Float(number(u, spec)?),
        ParamKind::Int => ParamValue::Int(number(u, spec)? as i64),
        ParamKind::Uint => ParamValue::Uint(number(u, spec)? as u64),
        ParamKind::Bool => ParamValue::Bool(u.arbitrary()?),
        ParamKind::Text => ParamValue::Text(u.choose(&Preset::ALL)?.name().to_owned()),
        ParamKind::TextList => ParamValue::TextList(order(u)?),
        ParamKind::Ids => ParamValue::Ids(ids(u, size, 9)?),
        ParamKind::Sequences => {
            let count = u.int_in_range(0..=3)?;
            ParamValue::Sequences((0..count).map(|_| ids(u, size, 3)).collect::<Result<_>>()?)
        }
        ParamKind::Bias => {
            let count = u.int_in_range(0..=4)?;
            let entries = (0..count).map(|_| Ok((id(u, size)?, number(u, spec)?)));
            ParamValue::Bias(entries.collect::<Result<_>>()?)
        }
    })
}

/// A number for a parameter: small, an end of its range, any in the range, or any at all.
fn number(u: &mut Unstructured<'_>, spec: &ParamSpec) -> Result<f64> {
    let end = |bound| match bound {
        Bound::Inclusive(end) | Bound::Exclusive(end) => end,
        Bound::Vocab => 1000.0,
    };
    let (low, high) = spec.domain.map_or((0.0, 1.0), |d| (end(d.low), end(d.high)));
    Ok(match u.int_in_range(0..=9)? {
        0 => low,
        1 => high,
        2 => f64::from(u.arbitrary::<i8>()?),
        3 => low + (high - low) * f64::from(u.arbitrary::<u16>()?) / 65535.0,
        4 => f64::from_bits(u.arbitrary()?),
        5 => f64::from(u.int_in_range(0..=12)?),
        _ => (f64::from(u.arbitrary::<u8>()?) / 128.0).clamp(low, high),
    })
}

/// A few stages, each once at most.
fn order(u: &mut Unstructured<'_>) -> Result<Vec<String>> {
    let mut left = Stage::ORDERED.to_vec();
    let count = u.int_in_range(0..=15)?;
    (0..count)
        .map(|_| {
            let place = u.int_in_range(0..=left.len() - 1)?;
            Ok(left.swap_remove(place).name().to_owned())
        })
        .collect()
}

/// The same parameters once written and read, where JSON can say them.
fn through_json(params: SamplingParams, wanted: bool) -> SamplingParams {
    let text = wanted.then(|| serde_json::to_string(&params).expect("parameters are JSON"));
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(params)
}

/// Bits of logits: any, ordinary numbers, or one of a few, so that many are equal.
fn logits(u: &mut Unstructured<'_>) -> Result<Vec<u32>> {
    let special = [0.0, -0.0, 1.0, 2.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MIN, f32::MAX, 1e-40];
    let kind: u8 = u.int_in_range(0..=3)?;
    // Long enough for several blocks, and for more tokens than are listed.
    let repeat = match u.int_in_range(0..=31)? {
        0 => 400,
        1..=4 => 40,
        _ => 1,
    };
    let mut bits = Vec::new();
    while !u.is_empty() && bits.len() < 64 {
        bits.push(match kind {
            0 => u.arbitrary()?,
            1 => (f32::from(u.arbitrary::<i16>()?) / 512.0).to_bits(),
            2 => (f32::from(u.arbitrary::<i8>()?) / 4.0).to_bits(),
            _ => match u.arbitrary::<u8>()? {
                byte if byte < 20 => f32::to_bits(special[usize::from(byte) % special.len()]),
                byte => f32::from(byte / 8).to_bits(),
            },
        });
    }
    Ok(bits.repeat(repeat))
}

fuzz_target!(|input: Input| {
    let Ok(params) = input.params.validate(&input.vocab) else {
        return;
    };
    let floats = input.logits.iter().map(|bits| f32::from_bits(*bits));
    match input.dtype {
        0 => run(&input, &params, LogitsRow::F32(&floats.collect::<Vec<_>>())),
        1 => run(&input, &params, LogitsRow::F16(&floats.map(f16::from_f32).collect::<Vec<_>>())),
        _ => run(&input, &params, LogitsRow::Bf16(&floats.map(bf16::from_f32).collect::<Vec<_>>())),
    }
});

fn run(input: &Input, params: &CompiledParams, logits: LogitsRow<'_>) {
    let mut state = SamplerState::new(params, &input.prompt);
    input.output.iter().for_each(|id| state.commit_forced(*id));
    for _ in 0..input.rewinds {
        state.commit_forced(0);
        state.rewind(1);
    }
    let mut state = state.fork(input.choice);
    if let Some(position) = input.position {
        state = state.at_position(position);
    }
    for _ in 0..STEPS {
        let sampled = step(input, &Row {
            mask: input.mask.as_deref(),
            uniform: input.uniform,
            logprobs: input.logprobs,
            ..Row::new(logits, params, &state)
        });
        state.commit(&sampled);
    }
}

/// The reference's token, which every way of the fast sampler must give.
fn step(input: &Input, row: &Row<'_>) -> SampledToken {
    let sampled = ReferenceSampler.sample(row);
    let trace = ReferenceSampler.trace(row);
    check(input, &sampled, &trace);
    let expected = (bits(&sampled), list(&ReferenceSampler.top_logprobs(row, &sampled)), all(&trace));
    for way in WAYS {
        let mut fast = CpuSampler::with_options(way);
        let got = fast.sample(row);
        let got = (bits(&got), list(&fast.top_logprobs(row, &got)), all(&fast.trace(row)));
        assert_eq!(got, expected, "{way:?}");
    }
    sampled
}

/// What holds for every result.
fn check(input: &Input, sampled: &SampledToken, trace: &Trace) {
    assert_eq!(bits(sampled), bits(&trace.sampled));
    if sampled.status != Status::Ok {
        assert!(trace.distribution.is_empty() && sampled.token_id == u32::MAX);
        return;
    }
    assert!(sampled.token_id < input.vocab.size && (sampled.token_id as usize) < input.logits.len());
    assert!(trace.distribution.iter().any(|(id, prob)| *id == sampled.token_id && *prob > 0.0));
    assert_eq!(trace.distribution.len(), sampled.kept_count as usize);
}

fn bits(sampled: &SampledToken) -> (u32, u32, u32, Status, i32) {
    let SampledToken { token_id, logprob, kept_count, status, feedback } = *sampled;
    (token_id, logprob.to_bits(), kept_count, status, feedback)
}

fn list(entries: &[TokenLogprob]) -> Vec<(u32, u32)> {
    entries.iter().map(|entry| (entry.token_id, entry.logprob.to_bits())).collect()
}

/// Everything that a trace says, numbers as their bits.
fn all(trace: &Trace) -> impl PartialEq + std::fmt::Debug + use<> {
    let stages = trace.stages.iter().map(|stage| {
        let numbers = [stage.mass.to_bits(), stage.entropy.to_bits()];
        let floats = [stage.max_logit.to_bits(), stage.temperature.to_bits()];
        (stage.name, stage.kept, stage.removed, stage.first_removed, numbers, floats)
    });
    let tokens = trace.distribution.iter().map(|(id, prob)| (*id, prob.to_bits()));
    (stages.collect::<Vec<_>>(), tokens.collect::<Vec<_>>())
}
