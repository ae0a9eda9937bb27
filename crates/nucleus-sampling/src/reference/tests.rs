use super::*;
use crate::CompiledParams;
use crate::config::VocabInfo;
use crate::params::SamplingParams;
use crate::row::LogitsRow;
use crate::state::SamplerState;

fn compile(params: SamplingParams, vocab_size: usize) -> CompiledParams {
    let params = SamplingParams {
        seed: Some(params.seed.unwrap_or(0)),
        ..params
    };
    params.validate(&VocabInfo::new(vocab_size as u32)).unwrap()
}

/// What a row is drawn from, by ascending id: ids with their integer weights.
fn weights_by_id(row: &Row<'_>) -> Vec<(u32, u64)> {
    let chosen = Run::new(row).choose(&mut Vec::new()).unwrap();
    let tokens = chosen.candidates.as_slice().iter();
    let mut weights: Vec<_> = tokens.map(|t| t.id).zip(chosen.weights.q).collect();
    weights.sort_unstable();
    weights
}

/// The first uniform number that draws an id above `token_id`, by bisection; 2^64 if there is none.
fn end_of_interval(row: &Row<'_>, token_id: u32) -> u128 {
    let above = |u: u64| {
        let row = Row {
            uniform: Some(u),
            ..*row
        };
        ReferenceSampler.sample(&row).token_id > token_id
    };
    let (mut low, mut high) = (0u128, 1u128 << 64);
    while low < high {
        let middle = (low + high) / 2;
        if above(middle as u64) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Every token's interval of uniform numbers is within 1 of q 2^64 / Z.
fn check_intervals(logits: &[f32], params: SamplingParams) {
    let params = compile(params, logits.len());
    let state = SamplerState::new(&params, &[]);
    let row = Row::new(LogitsRow::F32(logits), &params, &state);
    let weights = weights_by_id(&row);
    let total: u128 = weights.iter().map(|(_, q)| u128::from(*q)).sum();
    let mut start = 0u128;
    for (id, q) in weights {
        let end = end_of_interval(&row, id);
        let (length, product) = (end - start, u128::from(q) << 64);
        let exact = product / total;
        assert!(
            length.abs_diff(exact) <= 1,
            "token {id}: {length}, expected {exact}"
        );
        start = end;
    }
    assert_eq!(start, 1 << 64, "the intervals cover every uniform number");
}

#[test]
fn intervals_of_an_unfiltered_row_equal_the_weights() {
    check_intervals(
        &[0.3, -2.0, 7.5, 7.25, 1.0, -30.0, 7.5],
        SamplingParams::default(),
    );
}

#[test]
fn intervals_of_a_filtered_row_equal_the_weights() {
    let params = SamplingParams {
        temperature: Some(0.7),
        top_k: Some(5),
        top_p: Some(0.95),
        min_p: Some(0.01),
        ..Default::default()
    };
    check_intervals(&[0.3, -2.0, 7.5, 7.25, 1.0, 5.0, 7.5, 6.0], params);
}

#[test]
fn intervals_hold_where_weights_are_as_small_as_they_get() {
    let logits: Vec<f32> = (0..40).map(|i| -(i as f32)).collect();
    check_intervals(&logits, SamplingParams::default());
}

#[test]
fn intervals_after_mirostat_and_adaptive_p_equal_the_weights() {
    let logits = [3.0, 2.5, 2.0, 0.0, -1.0, 4.0];
    check_intervals(
        &logits,
        SamplingParams {
            mirostat: Some(2),
            mirostat_tau: Some(1.0),
            ..Default::default()
        },
    );
    check_intervals(
        &logits,
        SamplingParams {
            adaptive_target: Some(0.3),
            ..Default::default()
        },
    );
}

/// The example of `docs/sampling.md`, number for number.
#[test]
fn the_worked_row_of_the_page() {
    let params = SamplingParams {
        temperature: Some(0.8),
        top_k: Some(4),
        top_p: Some(0.9),
        repetition_penalty: Some(1.25),
        seed: Some(42),
        ..Default::default()
    };
    let params = compile(params, 6);
    let state = SamplerState::new(&params, &[3, 4]);
    let logits = [2.0, 1.0, 0.5, 3.0, -1.0, 2.0];
    let row = Row::new(LogitsRow::F32(&logits), &params, &state);
    assert_eq!(fixed::scale(0.8), 1.803_368_8);
    assert_eq!(fixed::threshold_q32(0.9), 3_865_470_233);
    assert_eq!(
        weights_by_id(&row),
        [
            (0, 13_394_793_988_096),
            (3, 22_084_283_531_264),
            (5, 13_394_793_988_096)
        ]
    );
    let uniform = Run::new(&row).random(Purpose::Draw);
    assert_eq!(uniform, 0x77f5_493b_9cea_f053);
    assert_eq!(
        fixed::mulhi64(uniform, 48_873_871_507_456),
        22_901_637_287_431
    );
    let sampled = ReferenceSampler.sample(&row);
    assert_eq!((sampled.token_id, sampled.kept_count), (3, 3));
}

#[test]
fn the_worked_row_before_truncation() {
    let tokens = [
        (0, 2.0),
        (1, 1.0),
        (2, 0.5),
        (3, 3.0f32 / 1.25),
        (4, -1.25),
        (5, 2.0),
    ];
    let tokens = tokens.map(|(id, logit)| candidates::Candidate { id, logit });
    let mut candidates = Candidates::new(tokens.into_iter()).unwrap();
    candidates.temperature = 0.8;
    let weights = candidates.weights().unwrap();
    let order: Vec<u32> = candidates.as_slice().iter().map(|token| token.id).collect();
    assert_eq!((order, weights.max), (vec![3, 0, 5, 1, 2, 4], 4));
    assert_eq!(
        weights.q,
        [
            22_084_283_531_264,
            13_394_793_988_096,
            13_394_793_988_096,
            3_837_672_554_496,
            2_054_158_155_776,
            230_470_156_288
        ]
    );
}
