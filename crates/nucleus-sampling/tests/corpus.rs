//! The corpus on the reference sampler.

#[path = "corpus/mod.rs"]
mod corpus;

use std::collections::BTreeSet;

use nucleus_sampling::ReferenceSampler;

#[test]
fn the_reference_gives_what_the_corpus_says() {
    corpus::check(&mut ReferenceSampler::new());
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
