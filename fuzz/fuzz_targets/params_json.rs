//! Any text as a request: it is refused or accepted without panic, and what is accepted means the same once written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nucleus_sampling::{PARAMS, ParamKind, Policy, SamplingParams, VocabInfo};

const POLICIES: [Policy; 4] = [
    Policy::Library,
    Policy::Execute,
    Policy::OpenAi,
    Policy::LlamaCpp,
];

const KINDS: [ParamKind; 9] = [
    ParamKind::Float,
    ParamKind::Int,
    ParamKind::Uint,
    ParamKind::Bool,
    ParamKind::Text,
    ParamKind::TextList,
    ParamKind::Ids,
    ParamKind::Sequences,
    ParamKind::Bias,
];

fuzz_target!(|text: &str| {
    for kind in KINDS {
        let _ = kind.parse(text);
    }
    if let Ok(params) = serde_json::from_str::<SamplingParams>(text) {
        check(&params);
    }
});

fn check(params: &SamplingParams) {
    let text = serde_json::to_string(params).expect("parameters are JSON");
    let again: SamplingParams = serde_json::from_str(&text).expect("parameters read what they write");
    assert_eq!(&again, params);
    copied_by_name(params);
    for policy in POLICIES {
        let _ = params.clone().with_defaults(policy);
        let _ = params.check_policy(policy, &VocabInfo::new(1000));
    }
    for size in [0, 1, 2, 1000, 1 << 19, u32::MAX] {
        compiled_twice(params, &VocabInfo::new(size).with_eos(&[0]));
    }
}

/// Every parameter that is read by its name can be set by it.
fn copied_by_name(params: &SamplingParams) {
    let mut copy = SamplingParams::default();
    for spec in PARAMS {
        if let Some(value) = params.get(spec.name).expect("a parameter") {
            copy.set(spec.name, value).expect("its own type");
        }
    }
    assert_eq!(&copy, params);
}

/// The effective parameters of a request compile to what the request does.
fn compiled_twice(params: &SamplingParams, vocab: &VocabInfo) {
    let Ok(compiled) = params.validate(vocab) else {
        return;
    };
    let again = compiled.effective().validate(vocab).expect("effective parameters are valid");
    assert_eq!(again.config(), compiled.config());
    assert_eq!(again.tables(), compiled.tables());
    assert_eq!(again.class(), compiled.class());
    assert_eq!(again.effective(), compiled.effective());
}
