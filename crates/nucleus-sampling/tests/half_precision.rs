//! Rows of binary16 and bfloat16 (R2.1): every stage gives exactly what it gives for the row's widening to binary32, whatever the way of
//! working, and the numbers of small rows are those of a calculation by hand.

#[path = "parity/mod.rs"]
#[allow(dead_code)]
mod parity;

use half::{bf16, f16};
use nucleus_sampling::{
    CpuSampler, LogitsRow, ReferenceSampler, Row, SampledToken, Sampler, SamplingParams, Trace,
};
use parity::{Request, RowSpec, Shape, WAYS, bits};

/// Vocabularies of a few tokens, of one block and a bit, and of many blocks.
const SIZES: [usize; 3] = [7, 300, 20_000];

/// Samples the row and its widening with every way of the fast sampler and with the reference: all must agree.
fn as_widened(request: &Request, row: LogitsRow<'_>, widened: &[f32]) {
    let (params, state) = request
        .compile(widened.len() as u32)
        .expect("valid parameters");
    let expected =
        ReferenceSampler::new().sample(&request.row(LogitsRow::F32(widened), &params, &state));
    let half = request.row(row, &params, &state);
    assert_eq!(
        bits(&ReferenceSampler::new().sample(&half)),
        bits(&expected)
    );
    for way in WAYS {
        let sampled = CpuSampler::with_options(way).sample(&half);
        assert_eq!(
            bits(&sampled),
            bits(&expected),
            "{way:?} {:?}",
            request.params
        );
    }
}

/// Compares rows of several shapes and sizes after a history that repeats itself.
fn check(params: SamplingParams) {
    let params = SamplingParams {
        seed: Some(4),
        ..params
    };
    let request = &Request {
        prompt: vec![0, 1, 2, 1, 2],
        output: vec![3, 1, 2],
        ..Request::of(params)
    };
    for (shape, seed) in [(Shape::Bell(2.0), 1), (Shape::Peaked, 2), (Shape::Ties, 3)] {
        for size in SIZES {
            let logits = RowSpec::plain(shape, seed).make(size);
            let halves: Vec<f16> = logits.iter().map(|x| f16::from_f32(*x)).collect();
            let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            as_widened(request, LogitsRow::F16(&halves), &widened);
            let brains: Vec<bf16> = logits.iter().map(|x| bf16::from_f32(*x)).collect();
            let widened: Vec<f32> = brains.iter().map(|x| x.to_f32()).collect();
            as_widened(request, LogitsRow::Bf16(&brains), &widened);
        }
    }
}

#[test]
fn r2_1_greedy() {
    check(SamplingParams {
        temperature: Some(0.0),
        ..Default::default()
    });
}

#[test]
fn r2_1_softmax() {
    check(SamplingParams {
        temperature: Some(0.7),
        ..Default::default()
    });
}

#[test]
fn r2_1_dynamic_temperature() {
    check(SamplingParams {
        temperature: Some(1.0),
        dynatemp_range: Some(0.5),
        ..Default::default()
    });
}

#[test]
fn r2_1_smoothing() {
    check(SamplingParams {
        smoothing_factor: Some(0.3),
        smoothing_curve: Some(1.5),
        ..Default::default()
    });
}

#[test]
fn r2_1_top_k() {
    check(SamplingParams {
        top_k: Some(5),
        ..Default::default()
    });
}

#[test]
fn r2_1_top_p() {
    check(SamplingParams {
        top_p: Some(0.9),
        ..Default::default()
    });
}

#[test]
fn r2_1_min_p() {
    check(SamplingParams {
        min_p: Some(0.05),
        ..Default::default()
    });
}

#[test]
fn r2_1_typical_p() {
    check(SamplingParams {
        typical_p: Some(0.8),
        ..Default::default()
    });
}

#[test]
fn r2_1_top_n_sigma() {
    check(SamplingParams {
        top_n_sigma: Some(1.5),
        ..Default::default()
    });
}

#[test]
fn r2_1_epsilon() {
    check(SamplingParams {
        epsilon_cutoff: Some(0.001),
        ..Default::default()
    });
}

#[test]
fn r2_1_eta() {
    check(SamplingParams {
        eta_cutoff: Some(0.002),
        ..Default::default()
    });
}

#[test]
fn r2_1_top_a() {
    check(SamplingParams {
        top_a: Some(0.2),
        ..Default::default()
    });
}

#[test]
fn r2_1_tfs() {
    check(SamplingParams {
        top_k: Some(6),
        tfs_z: Some(0.9),
        ..Default::default()
    });
}

#[test]
fn r2_1_xtc() {
    check(SamplingParams {
        xtc_probability: Some(1.0),
        xtc_threshold: Some(0.05),
        ..Default::default()
    });
}

#[test]
fn r2_1_penalties() {
    check(SamplingParams {
        repetition_penalty: Some(1.3),
        frequency_penalty: Some(0.4),
        presence_penalty: Some(0.2),
        ..Default::default()
    });
}

#[test]
fn r2_1_dry_and_n_grams() {
    check(SamplingParams {
        dry_multiplier: Some(0.8),
        no_repeat_ngram_size: Some(2),
        ..Default::default()
    });
}

#[test]
fn r2_1_mirostat() {
    check(SamplingParams {
        mirostat: Some(2),
        mirostat_tau: Some(3.0),
        ..Default::default()
    });
}

#[test]
fn r2_1_everything() {
    check(SamplingParams {
        temperature: Some(0.8),
        top_k: Some(6),
        top_p: Some(0.95),
        min_p: Some(0.02),
        repetition_penalty: Some(1.1),
        typical_p: Some(0.9),
        ..Default::default()
    });
}

fn sample(logits: LogitsRow<'_>, params: SamplingParams) -> (SampledToken, Trace) {
    let request = Request::of(SamplingParams {
        seed: Some(1),
        ..params
    });
    let (params, state) = request
        .compile(logits.len() as u32)
        .expect("valid parameters");
    let row: Row<'_> = request.row(logits, &params, &state);
    let mut sampler = CpuSampler::new();
    (sampler.sample(&row), sampler.trace(&row))
}

/// Weights 4 : 2 : 1 : 1 at T = log2 e.
#[test]
fn r2_1_probabilities_of_a_small_row() {
    let exponents = [2.0f32, 1.0, 0.0, 0.0];
    let params = || SamplingParams {
        temperature: Some(std::f64::consts::LOG2_E),
        ..Default::default()
    };
    let expected = vec![(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.125)];
    let (_, trace) = sample(LogitsRow::F16(&exponents.map(f16::from_f32)), params());
    assert_eq!(trace.distribution, expected);
    let (_, trace) = sample(LogitsRow::Bf16(&exponents.map(bf16::from_f32)), params());
    assert_eq!(trace.distribution, expected);
}

/// bfloat16 has 8 bits of precision: 1 and 1.001 are one number there, and two in binary16; the lower id wins a tie.
#[test]
fn r2_1_ties_are_those_of_the_type() {
    let greedy = || SamplingParams {
        temperature: Some(0.0),
        ..Default::default()
    };
    let row = [1.0f32, 1.001];
    assert_eq!(sample(LogitsRow::F32(&row), greedy()).0.token_id, 1);
    assert_eq!(
        sample(LogitsRow::F16(&row.map(f16::from_f32)), greedy())
            .0
            .token_id,
        1
    );
    assert_eq!(
        sample(LogitsRow::Bf16(&row.map(bf16::from_f32)), greedy())
            .0
            .token_id,
        0
    );
}

/// The largest binary16 is 65,504, the smallest 2^-24: neither is lost.
#[test]
fn r2_1_the_ends_of_binary16() {
    let greedy = || SamplingParams {
        temperature: Some(0.0),
        ..Default::default()
    };
    let row = [f16::from_f32(65_472.0), f16::MAX, f16::MIN];
    assert_eq!(sample(LogitsRow::F16(&row), greedy()).0.token_id, 1);
    let row = [f16::ZERO, f16::MIN_POSITIVE_SUBNORMAL, f16::NEG_ZERO];
    assert_eq!(sample(LogitsRow::F16(&row), greedy()).0.token_id, 1);
}
