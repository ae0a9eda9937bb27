//! The corpus on every sampler.

#[path = "corpus/mod.rs"]
mod corpus;

use std::collections::BTreeSet;

use nucleus_sampling::{CpuOptions, CpuSampler, ReferenceSampler};

#[test]
fn the_reference_gives_what_the_corpus_says() {
    corpus::check(&mut ReferenceSampler::new());
}

#[test]
fn the_fast_sampler_gives_what_the_corpus_says() {
    for (simd, shortcuts) in [(true, true), (true, false), (false, true), (false, false)] {
        corpus::check(&mut CpuSampler::with_options(CpuOptions {
            simd,
            shortcuts,
        }));
    }
}

#[test]
fn names_of_cases_are_unique() {
    let mut names = BTreeSet::new();
    for (_, case) in corpus::cases() {
        assert!(
            names.insert(case.name.clone()),
            "{:?} is used twice",
            case.name
        );
    }
}
