//! What holds for every request and every row: no panic, a status instead, and the invariances of the contract.

use half::f16;
use nucleus_sampling::{
    Bound, CompiledParams, LogitsRow, PARAMS, ParamKind, ParamSpec, ParamValue, Policy,
    ReferenceSampler, Row, SampledToken, Sampler, SamplerState, SamplingParams, Stage, Status,
    Trace, VocabInfo,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const VOCAB: u32 = 12;

/// Numbers in a parameter's range, its ends among them.
fn in_range(spec: &ParamSpec) -> BoxedStrategy<f64> {
    let end = |bound| match bound {
        Bound::Inclusive(end) => end,
        Bound::Exclusive(end) => f64::from((end as f32).next_up()),
        Bound::Vocab => f64::from(VOCAB),
    };
    let domain = spec.domain.expect("a numeric parameter");
    let (low, high) = (end(domain.low), end(domain.high));
    let small = low.max(-3.0)..=high.min(3.0);
    prop_oneof![4 => small, 1 => low..=high, 1 => Just(low), 1 => Just(high)].boxed()
}

/// A value that the library accepts.
fn value(spec: &ParamSpec) -> BoxedStrategy<ParamValue> {
    let ids = || vec(0..VOCAB, 1..4);
    match spec.kind {
        ParamKind::Float => in_range(spec).prop_map(ParamValue::Float).boxed(),
        ParamKind::Int => in_range(spec)
            .prop_map(|x| ParamValue::Int(x as i64))
            .boxed(),
        ParamKind::Uint => in_range(spec)
            .prop_map(|x| ParamValue::Uint(x as u64))
            .boxed(),
        ParamKind::Bool => any::<bool>().prop_map(ParamValue::Bool).boxed(),
        ParamKind::Text => select(vec!["default", "llama.cpp", "vllm", "hf"])
            .prop_map(|name| ParamValue::Text(name.to_owned()))
            .boxed(),
        ParamKind::TextList => Just(Stage::ORDERED.map(Stage::name).to_vec())
            .prop_shuffle()
            .prop_map(|names| ParamValue::TextList(names.into_iter().map(str::to_owned).collect()))
            .boxed(),
        ParamKind::Ids => ids().prop_map(ParamValue::Ids).boxed(),
        ParamKind::Sequences => vec(ids(), 0..3).prop_map(ParamValue::Sequences).boxed(),
        ParamKind::Bias => proptest::collection::btree_map(0..VOCAB, -10000.0..10000.0, 0..4)
            .prop_map(ParamValue::Bias)
            .boxed(),
    }
}

/// Requests of a few parameters, every one in its range. Combinations may still be refused.
fn params() -> impl Strategy<Value = SamplingParams> {
    let one = select(PARAMS).prop_flat_map(|spec| (Just(spec.name), value(&spec)));
    vec(one, 0..8).prop_map(|values| {
        let mut params = SamplingParams {
            seed: Some(3),
            ..Default::default()
        };
        for (name, value) in values {
            params
                .set(name, value)
                .expect("the value has the parameter's type");
        }
        params
    })
}

/// A logit: any bits at all, or an ordinary one, or one of few values, so that ties are common.
fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        1 => any::<u32>().prop_map(f32::from_bits),
        8 => -20.0f32..20.0,
        4 => select(vec![0.0, -0.0, 1.0, 2.0, f32::NEG_INFINITY, -3.4e38]),
    ]
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    vec(logit(), 0..16)
}

fn history() -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    let id = || prop_oneof![9 => 0..VOCAB, 1 => any::<u32>()];
    (vec(id(), 0..10), vec(id(), 0..10))
}

fn compile(params: &SamplingParams) -> Option<CompiledParams> {
    params
        .validate(&VocabInfo::new(VOCAB).with_eos(&[1, 5]))
        .ok()
}

fn state(params: &CompiledParams, (prompt, output): &(Vec<u32>, Vec<u32>)) -> SamplerState {
    let mut state = SamplerState::new(params, prompt);
    output.iter().for_each(|id| state.commit_forced(*id));
    state
}

fn bits(sampled: &SampledToken) -> (u32, u32, u32, Status, i32) {
    let SampledToken {
        token_id,
        logprob,
        kept_count,
        status,
        feedback,
    } = *sampled;
    (token_id, logprob.to_bits(), kept_count, status, feedback)
}

fn check_result(trace: &Trace, sampled: &SampledToken, len: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(bits(sampled), bits(&trace.sampled));
    if sampled.status != Status::Ok {
        prop_assert_eq!(sampled.token_id, u32::MAX);
        prop_assert!(trace.distribution.is_empty());
        return Ok(());
    }
    let probability = trace
        .distribution
        .iter()
        .find(|(id, _)| *id == sampled.token_id);
    prop_assert!(
        probability.is_some_and(|(_, p)| *p > 0.0),
        "drawn with probability 0"
    );
    prop_assert!((sampled.token_id as usize) < len.min(VOCAB as usize));
    prop_assert_eq!(sampled.kept_count as usize, trace.distribution.len());
    let total: f64 = trace.distribution.iter().map(|(_, p)| p).sum();
    prop_assert!((total - 1.0).abs() < 1e-9, "probabilities sum to {}", total);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_row_ends_with_a_token_or_a_status(
        params in params(), logits in row(), history in history(), uniform in any::<Option<u64>>(),
        mask in proptest::option::of(vec(any::<u32>(), 0..2)),
    ) {
        let Some(params) = compile(&params) else { return Ok(()) };
        let mut state = state(&params, &history);
        for _ in 0..3 {
            let row = Row { mask: mask.as_deref(), uniform, ..Row::new(LogitsRow::F32(&logits), &params, &state) };
            let sampled = ReferenceSampler.sample(&row);
            let trace = ReferenceSampler.trace(&row);
            check_result(&trace, &sampled, logits.len())?;
            state.commit(&sampled);
        }
    }

    #[test]
    fn neutral_parameters_change_no_bit(
        params in params(), logits in row(), history in history(), spec in select(PARAMS),
    ) {
        let neutral = spec.default_value(Policy::Library);
        let (Ok(None), Some(neutral)) = (params.get(spec.name), neutral) else { return Ok(()) };
        let mut explicit = params.clone();
        explicit.set(spec.name, neutral).unwrap();
        let (Some(absent), Some(explicit)) = (compile(&params), compile(&explicit)) else { return Ok(()) };
        let sample = |params: &CompiledParams| {
            let state = state(params, &history);
            bits(&ReferenceSampler.sample(&Row::new(LogitsRow::F32(&logits), params, &state)))
        };
        prop_assert_eq!(sample(&absent), sample(&explicit));
    }

    #[test]
    fn half_precision_rows_behave_as_their_widening(
        params in params(), logits in row(), history in history(),
    ) {
        let Some(params) = compile(&params) else { return Ok(()) };
        let state = state(&params, &history);
        let halves: Vec<f16> = logits.iter().map(|x| f16::from_f32(*x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let sample = |row| bits(&ReferenceSampler.sample(&Row::new(row, &params, &state)));
        prop_assert_eq!(sample(LogitsRow::F16(&halves)), sample(LogitsRow::F32(&widened)));
    }

    #[test]
    fn what_lies_beyond_the_vocabulary_does_not_matter(
        params in params(), logits in vec(logit(), VOCAB as usize), beyond in row(), history in history(),
    ) {
        let Some(params) = compile(&params) else { return Ok(()) };
        let state = state(&params, &history);
        let longer = [logits.clone(), beyond].concat();
        let sample = |row: &[f32]| bits(&ReferenceSampler.sample(&Row::new(LogitsRow::F32(row), &params, &state)));
        prop_assert_eq!(sample(&logits), sample(&longer));
    }

    #[test]
    fn adding_a_power_of_two_to_exact_logits_changes_no_token(
        params in params(), units in vec(-4096i32..4096, VOCAB as usize), uniform in any::<u64>(),
    ) {
        // Penalties and fixed cuts depend on the values; the truncations on differences alone. At T = log2 e, s is 1 and every step is exact.
        let mut params = SamplingParams {
            repetition_penalty: None, logit_bias: None, smoothing_factor: None, ..params
        };
        params.temperature = Some(std::f64::consts::LOG2_E);
        params.dynatemp_range = None;
        params.samplers = None;
        params.preset = None;
        params.mirostat = None;
        let Some(params) = compile(&params) else { return Ok(()) };
        let state = SamplerState::new(&params, &[]);
        let logits: Vec<f32> = units.iter().map(|x| *x as f32 / 512.0).collect();
        let shifted: Vec<f32> = logits.iter().map(|x| x + 16.0).collect();
        let sample = |row: &[f32]| {
            let row = Row { uniform: Some(uniform), ..Row::new(LogitsRow::F32(row), &params, &state) };
            let SampledToken { token_id, kept_count, status, .. } = ReferenceSampler.sample(&row);
            (token_id, kept_count, status)
        };
        prop_assert_eq!(sample(&logits), sample(&shifted));
    }

    #[test]
    fn a_batch_is_its_rows(
        params in vec(params(), 1..5), logits in vec(row(), 1..5), history in history(),
    ) {
        let compiled: Vec<CompiledParams> = params.iter().filter_map(compile).collect();
        let states: Vec<SamplerState> = compiled.iter().map(|params| state(params, &history)).collect();
        let rows: Vec<Row<'_>> = compiled.iter().zip(&states).zip(logits.iter().cycle())
            .map(|((params, state), logits)| Row::new(LogitsRow::F32(logits), params, state))
            .collect();
        let mut batch = vec![SampledToken::failed(Status::Nan); 3];
        ReferenceSampler.sample_batch(&rows, &mut batch);
        let alone: Vec<_> = rows.iter().map(|row| bits(&ReferenceSampler.sample(row))).collect();
        prop_assert_eq!(batch.iter().map(bits).collect::<Vec<_>>(), alone);
    }

    #[test]
    fn any_value_of_any_type_is_refused_or_accepted_without_panic(
        name in select(PARAMS), float in any::<f64>(), int in any::<i64>(), uint in any::<u64>(), size in any::<u32>(),
    ) {
        for value in [ParamValue::Float(float), ParamValue::Int(int), ParamValue::Uint(uint), ParamValue::Ids(vec![size])] {
            let mut params = SamplingParams::default();
            if params.set(name.name, value).is_ok() {
                for size in [size, VOCAB] {
                    let _ = params.validate(&VocabInfo::new(size));
                }
            }
        }
    }
}
