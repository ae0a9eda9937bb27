//! The ends of every range on rows made of the ends of f32: a token or a status, never a panic. (Tests run with overflow checks.)

use nucleus_sampling::{
    Bound, CompiledParams, CpuSampler, LogitsRow, MAX_VOCAB, PARAMS, ParamKind, ParamSpec,
    ParamValue, Policy, Preset, ReferenceSampler, Row, SampledToken, Sampler, SamplerState,
    SamplingParams, Status, VocabInfo,
};

const TINY: f32 = f32::from_bits(1);

/// Rows of at most eight tokens.
const ROWS: [&[f32]; 16] = [
    &[],
    &[0.0],
    &[-0.0, 0.0, -0.0],
    &[f32::NEG_INFINITY; 4],
    &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY],
    &[f32::MAX, f32::MIN],
    &[f32::MIN; 8],
    &[f32::MAX; 8],
    &[f32::INFINITY, 0.0],
    &[f32::NAN, 0.0],
    &[TINY, -TINY, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, 0.0],
    &[f32::EPSILON, 0.0, -f32::EPSILON],
    &[2.9e6, -2.9e6, 2.9e6, 0.0],
    &[-2.9e6, -2.9e6, f32::MIN],
    &[1.0; 8],
    &[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -60.0],
];

/// The ends of a range, what is next to them, and numbers that f32 cannot hold.
fn ends(spec: &ParamSpec) -> Vec<ParamValue> {
    let Some(domain) = spec.domain else {
        return Vec::new();
    };
    let end = |bound| match bound {
        Bound::Inclusive(end) | Bound::Exclusive(end) => end,
        Bound::Vocab => 8.0,
    };
    let (low, high) = (end(domain.low), end(domain.high));
    let numbers = [
        low,
        low.next_up(),
        low + 1.0,
        high - 1.0,
        high.next_down(),
        high,
        f64::MIN_POSITIVE,
        1e-40,
        0.5,
    ];
    let numbers = numbers.into_iter().filter(|x| domain.at(8).contains(*x));
    match spec.kind {
        ParamKind::Float => numbers.map(ParamValue::Float).collect(),
        ParamKind::Int => numbers.map(|x| ParamValue::Int(x as i64)).collect(),
        ParamKind::Uint => numbers.map(|x| ParamValue::Uint(x as u64)).collect(),
        ParamKind::Bias => numbers
            .map(|x| ParamValue::Bias([(1, x), (7, -x)].into()))
            .collect(),
        _ => Vec::new(),
    }
}

/// Requests in which every stage runs, for every preset.
fn busy() -> impl Iterator<Item = SamplingParams> {
    Preset::ALL.into_iter().map(|preset| SamplingParams {
        preset: Some(preset.name().to_owned()),
        seed: Some(u64::MAX),
        top_k: Some(7),
        temperature: Some(0.5),
        dynatemp_range: Some(0.25),
        smoothing_factor: Some(0.1),
        top_p: Some(0.99),
        min_p: Some(0.001),
        typical_p: Some(0.99),
        top_n_sigma: Some(4.0),
        epsilon_cutoff: Some(1e-4),
        eta_cutoff: Some(1e-4),
        top_a: Some(0.01),
        tfs_z: Some(0.99),
        xtc_probability: Some(0.5),
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.1),
        presence_penalty: Some(0.1),
        dry_multiplier: Some(0.5),
        no_repeat_ngram_size: Some(4),
        mirostat: Some(2),
        ..Default::default()
    })
}

/// A history that repeats itself, with an id that no vocabulary has.
fn state(params: &CompiledParams) -> SamplerState {
    let mut state = SamplerState::new(params, &[0, 1, 0, 1, u32::MAX]);
    [0, 1, 2, 0, 1]
        .iter()
        .for_each(|id| state.commit_forced(*id));
    state
}

/// The token is one of the row's, or there is a status; samplers agree, and the state takes it.
fn check(fast: &mut CpuSampler, logits: &[f32], params: &CompiledParams) {
    let mut state = state(params);
    let mut reference = ReferenceSampler::new();
    let about = || format!("{logits:?} {:?}", params.effective());
    for _ in 0..2 {
        let row = Row::new(LogitsRow::F32(logits), params, &state);
        let (sampled, trace) = (reference.sample(&row), reference.trace(&row));
        let is_one = (sampled.token_id as usize) < logits.len();
        assert_eq!(is_one, sampled.status == Status::Ok, "{}", about());
        assert_eq!(trace.sampled.token_id, sampled.token_id);
        assert_eq!(
            reference.top_logprobs(&row, &sampled).len(),
            usize::from(is_one)
        );
        // As text, NaN equals NaN.
        assert_eq!(
            format!("{:?}", fast.sample(&row)),
            format!("{sampled:?}"),
            "{}",
            about()
        );
        assert_eq!(
            format!("{:?}", fast.trace(&row)),
            format!("{trace:?}"),
            "{}",
            about()
        );
        state.commit(&sampled);
    }
}

/// Both samplers, which must agree.
fn sample(row: &Row<'_>) -> SampledToken {
    let sampled = ReferenceSampler::new().sample(row);
    assert_eq!(
        format!("{:?}", CpuSampler::new().sample(row)),
        format!("{sampled:?}")
    );
    sampled
}

#[test]
fn every_parameter_at_its_ends() {
    let (mut requests, mut fast) = (0, CpuSampler::new());
    for spec in PARAMS {
        for value in ends(spec) {
            for mut params in busy().chain([SamplingParams {
                seed: Some(0),
                ..Default::default()
            }]) {
                params
                    .set(spec.name, value.clone())
                    .expect("the parameter's type");
                // A few ends exclude each other.
                if let Ok(params) = params.validate(&VocabInfo::new(8).with_eos(&[7])) {
                    ROWS.iter().for_each(|row| check(&mut fast, row, &params));
                    requests += 1;
                }
            }
        }
    }
    assert!(requests > 1000, "{requests}");
}

#[test]
fn positions_and_attempts_wrap() {
    let params = SamplingParams {
        seed: Some(1),
        mirostat: Some(1),
        ..Default::default()
    };
    let params = params.validate(&VocabInfo::new(4)).unwrap();
    let mut state = SamplerState::new(&params, &[]).at_position(u32::MAX);
    let draw =
        |state: &SamplerState| sample(&Row::new(LogitsRow::F32(&[1.0, 2.0, 3.0]), &params, state));
    state.commit(&draw(&state));
    assert_eq!(state.position(), 0);
    assert_eq!(draw(&state).status, Status::Ok);
}

#[test]
fn feedback_of_any_size_is_learnt_without_overflow() {
    let mirostat = SamplingParams {
        mirostat: Some(2),
        mirostat_tau: Some(100.0),
        mirostat_eta: Some(10.0),
        ..Default::default()
    };
    let adaptive = SamplingParams {
        adaptive_target: Some(1.0),
        adaptive_decay: Some(0.99),
        ..Default::default()
    };
    for params in [mirostat, adaptive] {
        let params = params.validate(&VocabInfo::new(4)).unwrap();
        let mut state = SamplerState::new(&params, &[]);
        for feedback in [i32::MIN, i32::MAX, 0, i32::MIN, i32::MIN].repeat(100) {
            state.commit(&SampledToken {
                token_id: 1,
                logprob: 0.0,
                kept_count: 1,
                status: Status::Ok,
                feedback,
            });
            let row = Row::new(LogitsRow::F32(&[1.0, 2.0, 3.0]), &params, &state);
            assert_eq!(sample(&row).status, Status::Ok);
        }
    }
}

/// The sum of 2^19 weights as large as they get fits 64 bits.
#[test]
fn the_largest_vocabulary_of_equal_tokens() {
    let half = 0.5 / std::f32::consts::LOG2_E;
    for logit in [half, 0.0, 2_907_269.5, -2_907_269.5] {
        let logits = vec![logit; MAX_VOCAB as usize];
        for uniform in [0, u64::MAX] {
            let params = SamplingParams {
                seed: Some(1),
                top_p: Some(0.9),
                ..Default::default()
            };
            let params = params.validate(&VocabInfo::new(MAX_VOCAB)).unwrap();
            let state = SamplerState::new(&params, &[]);
            let mut row = Row::new(LogitsRow::F32(&logits), &params, &state);
            row.uniform = Some(uniform);
            let sampled = sample(&row);
            let share = f64::from(sampled.kept_count) / f64::from(MAX_VOCAB);
            assert!((share - 0.9).abs() < 1e-5, "{logit}: {share}");
            assert_eq!(
                sampled.token_id,
                if uniform == 0 {
                    0
                } else {
                    sampled.kept_count - 1
                }
            );
        }
    }
}

/// A number in JSON is the nearest f64, so that a response's effective parameters replay the request.
#[test]
fn numbers_in_json_are_read_exactly() {
    for index in 0..10_000u32 {
        let temperature = f64::from(index).sqrt() * 0.012_345_678_9;
        let params = SamplingParams {
            temperature: Some(temperature),
            ..Default::default()
        };
        let text = serde_json::to_string(&params).unwrap();
        let again: SamplingParams = serde_json::from_str(&text).unwrap();
        assert_eq!(again, params, "{text}");
    }
    let vocab = VocabInfo::new(8);
    let params = SamplingParams {
        temperature: Some(0.7),
        ..Default::default()
    }
    .with_defaults(Policy::LlamaCpp);
    let effective = params.validate(&vocab).unwrap().effective().clone();
    assert_eq!(effective.validate(&vocab).unwrap().effective(), &effective);
}
