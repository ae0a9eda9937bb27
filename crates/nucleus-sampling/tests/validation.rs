//! What requests are refused, what they are told, and what is accepted with a warning.

use nucleus_sampling::{
    Bound, Class, Domain, PARAMS, ParamError, ParamKind, ParamSpec, ParamValue, Policy,
    SamplingParams, VocabInfo,
};

fn vocab() -> VocabInfo {
    VocabInfo::new(100)
}

/// A request with one parameter.
fn one(name: &str, value: ParamValue) -> SamplingParams {
    let mut params = SamplingParams::default();
    params
        .set(name, value)
        .expect("the value has the parameter's type");
    params
}

/// A number as a value of the parameter's type; `None` if the type cannot hold it.
fn number(spec: &ParamSpec, value: f64) -> Option<ParamValue> {
    match spec.kind {
        ParamKind::Float => Some(ParamValue::Float(value)),
        ParamKind::Bias => Some(ParamValue::Bias([(1, value)].into())),
        ParamKind::Int => (value.fract() == 0.0 && value.abs() < 2f64.powi(63))
            .then_some(ParamValue::Int(value as i64)),
        ParamKind::Uint => (value.fract() == 0.0 && (0.0..2f64.powi(64)).contains(&value))
            .then_some(ParamValue::Uint(value as u64)),
        _ => None,
    }
}

/// Numbers inside and outside of a range, at its very ends.
fn probes(domain: Domain, kind: ParamKind) -> (Vec<f64>, Vec<f64>) {
    let whole = matches!(kind, ParamKind::Int | ParamKind::Uint);
    let step = |x: f64, up: bool| match (whole, up) {
        (true, true) => x + 1.0,
        (true, false) => x - 1.0,
        (false, true) => x.next_up(),
        (false, false) => x.next_down(),
    };
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (bound, up) in [(domain.low, false), (domain.high, true)] {
        match bound {
            Bound::Inclusive(end) => {
                inside.push(end);
                outside.push(step(end, up));
            }
            Bound::Exclusive(end) => {
                inside.push(step(end, !up));
                outside.push(end);
            }
            Bound::Vocab => unreachable!("the vocabulary's size has been put in"),
        }
    }
    (inside, outside)
}

#[test]
fn r1_7_every_number_is_accepted_up_to_the_ends_of_its_range_and_refused_beyond() {
    for policy in [
        Policy::Library,
        Policy::Execute,
        Policy::OpenAi,
        Policy::LlamaCpp,
    ] {
        for spec in PARAMS {
            let Some(domain) = spec.range(policy).map(|domain| domain.at(100)) else {
                continue;
            };
            let (inside, outside) = probes(domain, spec.kind);
            let check = |value| one(spec.name, value).check_policy(policy, &vocab());
            for value in inside.iter().filter_map(|value| number(spec, *value)) {
                assert_eq!(check(value.clone()), Ok(()), "{} = {value}", spec.name);
            }
            for value in outside.iter().filter_map(|value| number(spec, *value)) {
                let error = check(value).expect_err(spec.name);
                assert_eq!(error.param(), spec.name);
                let text = error.to_string();
                assert!(text.contains(&domain.to_string()), "{text}");
            }
        }
    }
}

#[test]
fn r1_7_ranges_of_the_execute_endpoint() {
    let range = |name| {
        let spec = ParamSpec::find(name).expect(name);
        (
            spec.range(Policy::Execute).expect(name).to_string(),
            spec.default(Policy::Execute),
        )
    };
    use nucleus_sampling::Literal::{Absent, Float, Int};
    assert_eq!(range("temperature"), ("[0, 2]".to_owned(), Float(1.0)));
    assert_eq!(range("top_p"), ("[0, 1]".to_owned(), Float(1.0)));
    assert_eq!(range("top_k"), ("[0, vocab]".to_owned(), Int(0)));
    assert_eq!(
        range("repetition_penalty"),
        ("(0, 2]".to_owned(), Float(1.0))
    );
    assert_eq!(range("min_p"), ("[0, 1]".to_owned(), Float(0.0)));
    assert_eq!(range("seed").1, Absent);
}

#[test]
fn r1_7_a_refusal_names_the_parameter_the_value_and_the_range() {
    let message = |name, value| {
        let error = one(name, value)
            .check_policy(Policy::Execute, &vocab())
            .unwrap_err();
        error.to_string()
    };
    assert_eq!(
        message("temperature", ParamValue::Float(2.5)),
        "temperature: 2.5 is outside [0, 2]"
    );
    assert_eq!(
        message("top_k", ParamValue::Int(101)),
        "top_k: 101 is outside [0, 100]"
    );
    assert_eq!(
        message("top_k", ParamValue::Int(-1)),
        "top_k: -1 is outside [0, 100]"
    );
    assert_eq!(
        message("repetition_penalty", ParamValue::Float(0.0)),
        "repetition_penalty: 0 is outside (0, 2]"
    );
    assert_eq!(
        message("logit_bias", ParamValue::Bias([(3, -101.0)].into())),
        "logit_bias: -101 is outside [-100, 100]"
    );
}

#[test]
fn r1_7_numbers_that_are_none_are_refused() {
    let floats = PARAMS
        .iter()
        .filter(|spec| matches!(spec.kind, ParamKind::Float | ParamKind::Bias));
    for spec in floats {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39, -1e39] {
            let value = number(spec, value).expect("a floating-point parameter");
            let error = one(spec.name, value)
                .validate(&vocab())
                .expect_err(spec.name);
            assert!(matches!(error, ParamError::OutOfRange { param, .. } if param == spec.name));
        }
    }
}

#[test]
fn r1_7_the_whole_range_of_seeds_is_accepted() {
    for seed in [0, 1, u64::from(u32::MAX) + 1, u64::MAX] {
        let compiled = one("seed", ParamValue::Uint(seed))
            .validate(&vocab())
            .unwrap();
        assert_eq!(compiled.config().seed, seed);
    }
}

#[test]
fn library_and_compatible_endpoints_take_top_k_minus_one_zero_and_the_vocabulary_as_off() {
    for k in [-1, 0, 100, 101, i64::from(u32::MAX)] {
        let params = one("top_k", ParamValue::Int(k));
        assert_eq!(params.check_policy(Policy::OpenAi, &vocab()), Ok(()));
        assert_eq!(params.validate(&vocab()).unwrap().config().top_k, 0, "{k}");
    }
}

#[test]
fn tiny_values_do_not_become_other_rules() {
    let config = |name, value| {
        *one(name, ParamValue::Float(value))
            .validate(&vocab())
            .unwrap()
            .config()
    };
    assert_eq!(
        config("temperature", 1e-300).temperature,
        0.01,
        "not greedy"
    );
    assert_eq!(config("temperature", 0.0).temperature, 0.0);
    assert_eq!(
        config("temperature", -0.0).temperature,
        0.0,
        "minus zero is zero"
    );
    assert!(
        config("repetition_penalty", 1e-300).repetition_penalty > 0.0,
        "no division by zero"
    );
}

#[test]
fn the_vocabulary_is_checked() {
    for size in [0, (1 << 19) + 1, u32::MAX] {
        let error = SamplingParams::default()
            .validate(&VocabInfo::new(size))
            .unwrap_err();
        assert_eq!(error, ParamError::VocabSize { size, max: 1 << 19 });
        assert_eq!(error.param(), "vocab_size");
    }
    let error = SamplingParams::default()
        .validate(&vocab().with_eos(&[100]))
        .unwrap_err();
    assert_eq!(error.to_string(), "eos: token id 100 is outside [0, 100)");
}

#[test]
fn ids_outside_the_vocabulary_are_refused_by_name() {
    let lists = [
        ("allowed_token_ids", ParamValue::Ids(vec![0, 100])),
        (
            "bad_words",
            ParamValue::Sequences(vec![vec![0], vec![1, 100]]),
        ),
        (
            "dry_sequence_breakers",
            ParamValue::Sequences(vec![vec![100]]),
        ),
        ("logit_bias", ParamValue::Bias([(100, 0.0)].into())),
    ];
    for (param, value) in lists {
        let error = one(param, value).validate(&vocab()).unwrap_err();
        assert_eq!(
            error,
            ParamError::UnknownToken {
                param,
                id: 100,
                vocab_size: 100
            }
        );
    }
}

#[test]
fn lists_have_a_greatest_length() {
    let long = ParamValue::Sequences(vec![vec![0; 1025]]);
    let error = one("bad_words", long).validate(&vocab()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bad_words: a length of 1025 is outside [1, 1024]"
    );
    let many = ParamValue::Sequences(vec![vec![0]; (1 << 16) + 1]);
    let error = one("bad_words", many).validate(&vocab()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bad_words: a length of 65537 is outside [1, 65536]"
    );
    assert!(
        one("bad_words", ParamValue::Sequences(vec![]))
            .validate(&vocab())
            .is_ok()
    );
}

#[test]
fn an_absent_seed_is_drawn_and_told() {
    let compiled = SamplingParams::default().validate(&vocab()).unwrap();
    let seed = compiled
        .effective()
        .seed
        .expect("the response carries the seed");
    assert_eq!(seed, compiled.config().seed);
    assert!(seed < 1 << 53);
}

#[test]
fn effective_parameters_are_what_acts() {
    let params = SamplingParams {
        temperature: Some(1e-4),
        top_k: Some(500),
        seed: Some(7),
        ..Default::default()
    };
    let compiled = params.validate(&vocab()).unwrap();
    let effective = compiled.effective();
    assert_eq!(effective.temperature, Some(0.01));
    assert_eq!(effective.top_k, Some(0));
    assert_eq!(effective.top_p, Some(1.0), "defaults are filled in");
    assert_eq!(effective.logit_bias, None, "lists stay absent");
    let again = effective.validate(&vocab()).unwrap();
    assert_eq!(again.config(), compiled.config());
    assert_eq!(again.tables(), compiled.tables());
}

#[test]
fn absent_parameters_and_neutral_ones_compile_to_the_same() {
    let seed = Some(1);
    let absent = SamplingParams {
        seed,
        ..Default::default()
    }
    .validate(&vocab())
    .unwrap();
    let neutral = SamplingParams {
        seed,
        ..Default::default()
    }
    .with_defaults(Policy::Library);
    let neutral = neutral.validate(&vocab()).unwrap();
    assert_eq!(absent.config(), neutral.config());
    assert_eq!(absent.tables(), neutral.tables());
    assert_eq!(absent.warnings(), neutral.warnings());
    assert_eq!(absent.warnings(), []);
    assert_eq!(absent.tables().program.ops().len(), 1, "the draw alone");
}

#[test]
fn defaults_of_every_endpoint_are_within_its_ranges() {
    for policy in [
        Policy::Library,
        Policy::Execute,
        Policy::OpenAi,
        Policy::LlamaCpp,
    ] {
        let params = SamplingParams::default().with_defaults(policy);
        assert_eq!(params.check_policy(policy, &vocab()), Ok(()));
        let warnings = params.validate(&vocab()).unwrap().warnings().to_vec();
        assert_eq!(warnings, [], "{policy:?}");
    }
}

fn class(params: SamplingParams) -> Class {
    params.validate(&VocabInfo::new(100_000)).unwrap().class()
}

#[test]
fn requests_are_classed_by_what_they_need_of_the_whole_row() {
    let none = SamplingParams::default;
    assert_eq!(class(none()), Class::A);
    assert_eq!(
        class(SamplingParams {
            temperature: Some(0.0),
            ..none()
        }),
        Class::A
    );
    assert_eq!(
        class(SamplingParams {
            top_p: Some(0.9),
            temperature: Some(0.7),
            ..none()
        }),
        Class::A
    );
    assert_eq!(
        class(SamplingParams {
            dynatemp_range: Some(0.5),
            ..none()
        }),
        Class::B
    );
    assert_eq!(
        class(SamplingParams {
            typical_p: Some(0.5),
            ..none()
        }),
        Class::B
    );
    assert_eq!(
        class(SamplingParams {
            typical_p: Some(0.5),
            top_k: Some(40),
            ..none()
        }),
        Class::A
    );
    assert_eq!(
        class(SamplingParams {
            mirostat: Some(2),
            ..none()
        }),
        Class::B
    );
    let two_temperatures = SamplingParams {
        top_p: Some(0.9),
        temperature: Some(0.7),
        preset: Some("llama.cpp".to_owned()),
        ..none()
    };
    assert_eq!(class(two_temperatures.clone()), Class::B);
    assert_eq!(
        class(SamplingParams {
            top_k: Some(40),
            ..two_temperatures
        }),
        Class::A
    );
    assert_eq!(
        class(SamplingParams {
            adaptive_target: Some(0.5),
            ..none()
        }),
        Class::C
    );
    let late_penalty = SamplingParams {
        top_p: Some(0.9),
        presence_penalty: Some(1.0),
        samplers: Some(vec!["top_p".to_owned(), "penalties".to_owned()]),
        ..none()
    };
    assert_eq!(class(late_penalty), Class::C);
}
