//! Rows on which cuts are searched for: forced to, and where looking for them first is in vain.

#[path = "parity/mod.rs"]
#[allow(dead_code)]
mod parity;

use half::bf16;
use nucleus_sampling::{
    CpuOptions, CpuSampler, LogitsRow, ReferenceSampler, Sampler, SamplingParams,
};
use parity::{Request, RowSpec, Shape, WAYS, bits};

const SHAPES: [Shape; 10] = [
    Shape::Bell(0.02),
    Shape::Bell(1.0),
    Shape::Bell(2.5),
    Shape::Peaked,
    Shape::Ties,
    Shape::Flat,
    Shape::OneHot,
    Shape::Sorted { rising: true },
    Shape::Sorted { rising: false },
    Shape::Steep,
];

/// Compares every way of working with the reference on one row.
fn agree(spec: &RowSpec, vocab: usize, params: SamplingParams) {
    let seed = Some(9);
    agree_on(spec, vocab, &Request::of(SamplingParams { seed, ..params }));
}

fn agree_on(spec: &RowSpec, vocab: usize, request: &Request) {
    agree_on_logits(&spec.make(vocab), request);
}

fn agree_on_logits(logits: &[f32], request: &Request) {
    let vocab = logits.len() as u32;
    let (compiled, state) = request.compile(vocab).expect("valid parameters");
    let row = request.row(LogitsRow::F32(logits), &compiled, &state);
    let expected = bits(&ReferenceSampler::new().sample(&row));
    for way in WAYS {
        let sampled = bits(&CpuSampler::with_options(way).sample(&row));
        assert_eq!(sampled, expected, "{:?} {way:?}", request.params);
    }
}

/// Its first hundred tokens end among equals, of which there are hundreds.
#[test]
fn mirostat_1_on_ties() {
    let params = SamplingParams {
        mirostat: Some(1),
        seed: Some(11),
        ..Default::default()
    };
    for seed in 0..8 {
        let mut logits = RowSpec::plain(Shape::Bell(0.02), seed).make(5000);
        for logit in &mut logits {
            *logit = bf16::from_f32(*logit + 2.77).to_f32();
        }
        agree_on_logits(&logits, &Request::of(params.clone()));
    }
}

#[test]
fn top_p_of_every_shape_and_size() {
    for shape in SHAPES {
        for (vocab, p, temperature) in [
            (3, 0.5, 1.0),
            (700, 0.999, 2.0),
            (9001, 0.3, 1.0),
            (20_000, 0.97, 0.5),
        ] {
            let params = SamplingParams {
                top_p: Some(p),
                temperature: Some(temperature),
                ..Default::default()
            };
            agree(&RowSpec::plain(shape, 1), vocab, params);
        }
    }
}

#[test]
fn top_k_below_and_above_every_limit() {
    for shape in SHAPES {
        for k in [1, 2, 63, 80, 4095, 4097, 12_000] {
            for preset in ["default", "vllm"] {
                let params = SamplingParams {
                    top_k: Some(k),
                    preset: Some(preset.to_owned()),
                    ..Default::default()
                };
                agree(&RowSpec::plain(shape, 2), 13_000, params);
            }
        }
    }
}

#[test]
fn cuts_after_cuts_only_tighten() {
    for shape in SHAPES {
        let params = SamplingParams {
            top_k: Some(9000),
            top_p: Some(0.99),
            min_p: Some(1e-9),
            epsilon_cutoff: Some(1e-7),
            top_a: Some(1e-6),
            min_keep: Some(3),
            ..Default::default()
        };
        agree(&RowSpec::plain(shape, 3), 11_000, params);
    }
}

#[test]
fn min_keep_beyond_what_a_cut_leaves() {
    for shape in SHAPES {
        for min_keep in [2, 5000] {
            let params = SamplingParams {
                top_p: Some(0.5),
                min_p: Some(0.9),
                min_keep: Some(min_keep),
                ..Default::default()
            };
            agree(&RowSpec::plain(shape, 4), 8000, params);
        }
    }
}

/// The cut is behind more tokens than are listed, so it is looked for in a bracket; the draws say what its blocks hold.
#[test]
fn a_cut_among_thousands() {
    let rows = [
        (Shape::Bell(1.0), 0.5),
        (Shape::Bell(1.0), 0.97),
        (Shape::Bell(3.0), 0.99),
        (Shape::Ties, 0.8),
        (Shape::Flat, 0.6),
        (Shape::Peaked, 0.9999),
    ];
    for (shape, p) in rows {
        let logits = RowSpec::plain(shape, 6).make(40_000);
        for seed in 0..6 {
            let params = SamplingParams {
                top_p: Some(p),
                seed: Some(seed),
                ..Default::default()
            };
            agree_on_logits(&logits, &Request::of(params));
        }
    }
}

#[test]
fn a_large_vocabulary_forced_down_the_search() {
    let options = CpuOptions {
        shortcuts: false,
        ..Default::default()
    };
    for (shape, top_k, top_p) in [
        (Shape::Bell(1.0), 0, 0.999),
        (Shape::Peaked, 40, 0.95),
        (Shape::Flat, 0, 0.5),
    ] {
        let request = Request::of(SamplingParams {
            seed: Some(1),
            top_k: Some(top_k),
            top_p: Some(top_p),
            temperature: Some(2.0),
            ..Default::default()
        });
        let (params, state) = request.compile(151_936).expect("valid parameters");
        let logits = RowSpec::plain(shape, 5).make(151_936);
        let row = request.row(LogitsRow::F32(&logits), &params, &state);
        let searched = CpuSampler::with_options(options).sample(&row);
        assert_eq!(bits(&searched), bits(&ReferenceSampler::new().sample(&row)));
    }
}

/// A forbidden logit is not looked at, neither where a cut is searched nor where one is estimated.
#[test]
fn cuts_take_no_notice_of_forbidden_logits() {
    let highest = |shift: f32| vec![(0.0, shift + 200.0), (0.5, 1e30), (0.999, f32::NAN)];
    // The second row lies at the lower end of the range of weights.
    for shift in [0.0, -2_907_200.0] {
        let spec = RowSpec {
            shift,
            odd: highest(shift),
            ..RowSpec::plain(Shape::Bell(3.0), 6)
        };
        for (vocab, stage) in [(700, 0), (3000, 1), (3000, 2), (20_000, 1), (20_000, 3)] {
            let last = (vocab as f64 * 0.999) as u32;
            let banned = [0, vocab as u32 / 2, last];
            let mut params = SamplingParams {
                bad_words: Some(banned.map(|id| vec![id]).to_vec()),
                temperature: Some(2.0),
                ..Default::default()
            };
            match stage {
                0 => params.typical_p = Some(0.9),
                1 => params.top_p = Some(0.99),
                2 => params.top_k = Some(2000),
                _ => (params.typical_p, params.mirostat) = (Some(0.5), Some(2)),
            }
            agree(&spec, vocab, params);
        }
    }
}

/// The sample of this row holds no token with weight, and most of it is out.
#[test]
fn nothing_that_is_out_is_kept_where_an_estimate_finds_nothing() {
    for (rest, kept) in [(f32::NEG_INFINITY, 1), (-4_194_290.0, 2)] {
        let mut logits = vec![rest; 1000];
        logits[913] = 0.0;
        let request = Request::of(SamplingParams {
            typical_p: Some(0.0),
            min_keep: Some(2),
            seed: Some(3),
            ..Default::default()
        });
        let (params, state) = request.compile(1000).expect("valid parameters");
        let row = request.row(LogitsRow::F32(&logits), &params, &state);
        assert_eq!(ReferenceSampler::new().sample(&row).kept_count, kept);
        for way in WAYS {
            assert_eq!(CpuSampler::with_options(way).sample(&row).kept_count, kept);
        }
    }
}

/// Masks that leave thousands of tokens, as a list, as bits or as both, before stages that look at all of them.
#[test]
fn masks_that_forbid_much_but_not_most() {
    const VOCAB: u32 = 12_000;
    let stages = [
        SamplingParams::default(),
        SamplingParams {
            xtc_probability: Some(1.0),
            xtc_threshold: Some(0.0005),
            ..Default::default()
        },
        SamplingParams {
            top_p: Some(0.98),
            repetition_penalty: Some(1.3),
            smoothing_factor: Some(0.1),
            ..Default::default()
        },
    ];
    for params in stages {
        for (listed, masked) in [(true, false), (false, true), (true, true)] {
            let params = SamplingParams {
                seed: Some(9),
                temperature: Some(1.5),
                allowed_token_ids: listed.then(|| (0..VOCAB).filter(|id| id % 5 != 1).collect()),
                bad_words: Some(vec![vec![2], vec![700, 3]]),
                logit_bias: Some([(2, 4.0), (6, 5.0), (7, -1.0), (11_999, 6.0)].into()),
                ..params.clone()
            };
            let request = Request {
                prompt: vec![5, 8, 700],
                output: vec![8, 700],
                // Three of four, and nothing beyond the last word.
                mask: masked.then(|| vec![0xE6EE_3777; VOCAB as usize / 32 - 1]),
                ..Request::of(params)
            };
            for shape in [Shape::Bell(1.0), Shape::Ties, Shape::Peaked] {
                agree_on(&RowSpec::plain(shape, 7), VOCAB as usize, &request);
            }
        }
    }
}
