//! Samplers that are wrong on purpose, and which checks notice. A check that nothing fails proves nothing.

#[path = "mutants/checks.rs"]
mod checks;
#[path = "corpus/mod.rs"]
#[expect(dead_code, reason = "here the cases are run one by one")]
mod corpus;
#[path = "draws/mod.rs"]
#[expect(dead_code, reason = "p-values are for long runs of draws")]
mod draws;
#[path = "mutants/faults.rs"]
mod faults;

use checks::Check::{self, Batch, Corpus, Frequencies, Intervals, Parity};
use faults::{Fault, Mutant};
use nucleus_sampling::{CpuSampler, ReferenceSampler};
use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

/// A fault, its name, and the checks that notice it.
struct Known(&'static str, Fault, &'static [Check]);

macro_rules! known {
    ($($fault:ident: $($check:ident),*;)*) => {
        &[$(Known(stringify!($fault), faults::$fault, &[$($check),*])),*]
    };
}

const FAULTS: &[Known] = known! {
    place_enters_the_counter: Batch, Parity;
    choice_does_not_enter_the_counter: Corpus, Parity;
    attempt_does_not_enter_the_counter: Corpus, Parity;
    positions_start_at_one: Corpus, Parity;
    draws_use_the_number_of_another_purpose: Corpus, Parity;
    halves_of_the_uniform_are_swapped: Corpus, Intervals, Parity;
    uniforms_have_8_bits: Corpus, Intervals, Parity;
    uniforms_have_24_bits: Intervals;
    seeds_have_32_bits: Corpus;
    the_xtc_coin_always_falls_on_yes: Corpus, Parity;
    draw_goes_by_rank: Corpus, Intervals, Parity;
    temperature_is_a_little_high: Corpus, Intervals, Parity, Frequencies;
    temperature_is_hardly_high: Corpus, Intervals, Parity;
    scale_is_one_ulp_off: Corpus, Intervals, Parity;
    logits_have_half_precision: Corpus, Intervals, Parity;
    greedy_takes_the_last_of_equals: Corpus, Parity;
    nan_is_passed_over: Corpus;
    infinity_is_the_largest_number: Corpus;
    ties_go_to_the_higher_id: Corpus, Intervals, Parity;
    a_tie_is_dropped: Corpus, Intervals, Parity;
    only_the_top_80_percent_can_be_drawn: Corpus, Intervals, Parity, Frequencies;
    top_k_keeps_one_more: Corpus, Intervals, Parity;
    top_k_keeps_one_less: Corpus, Intervals, Parity;
    top_k_drops_ties: Corpus, Parity;
    min_p_drops_what_equals_the_threshold: Corpus;
    min_p_forgets_the_temperature: Corpus, Parity;
    top_p_drops_the_token_that_crosses: Corpus, Parity;
    top_p_has_no_slack: Corpus;
    top_p_after_top_k_is_not_renormalised: Corpus, Parity;
    min_keep_is_ignored: Corpus, Parity;
    repetition_looks_at_the_output_alone: Corpus, Parity;
    repetition_divides_negative_logits_too: Corpus;
    a_window_is_one_token_short: Corpus;
    dry_allows_one_more: Corpus, Parity;
    the_end_is_banned_one_token_too_long: Corpus;
    frequency_counts_the_prompt: Corpus, Parity;
    presence_counts_occurrences: Corpus, Parity;
    missing_words_of_a_mask_allow: Corpus, Parity;
    ids_beyond_the_vocabulary_are_drawn: Corpus, Parity;
};

/// The checks that a fault fails.
fn noticed_by(fault: Fault) -> Vec<Check> {
    let fails = |check: &Check| check.run(&mut Mutant(fault)).is_err();
    Check::ALL.into_iter().filter(fails).collect()
}

#[test]
fn the_samplers_pass_every_check() {
    for check in Check::ALL {
        assert_eq!(check.run(&mut ReferenceSampler::new()), Ok(()), "{check:?}");
        assert_eq!(check.run(&mut CpuSampler::new()), Ok(()), "{check:?}");
    }
}

#[test]
fn a_mutant_without_a_fault_passes_every_check() {
    assert_eq!(noticed_by(faults::none), []);
}

#[test]
fn every_fault_is_noticed_by_the_checks_named() {
    let others: Vec<String> = FAULTS
        .par_iter()
        .map(|Known(name, fault, checks)| (name, noticed_by(*fault), checks))
        .filter(|(_, noticed, checks)| noticed.is_empty() || noticed != *checks)
        .map(|(name, noticed, checks)| format!("{name}: {noticed:?}, expected {checks:?}"))
        .collect();
    assert!(others.is_empty(), "{}", others.join("\n"));
}

/// Faults too small for the frequencies of a few draws.
const SMALL: [(&str, Fault); 2] = [
    (
        "temperature_is_hardly_high",
        faults::temperature_is_hardly_high,
    ),
    ("uniforms_have_8_bits", faults::uniforms_have_8_bits),
];

#[test]
#[ignore = "minutes"]
fn small_faults_show_in_the_frequencies_of_many_draws() {
    const CHUNK: u32 = 100_000;
    for (name, fault) in SMALL.into_iter().chain([("none", faults::none as Fault)]) {
        let draws = |chunk| checks::draws(&mut Mutant(fault), chunk * CHUNK..(chunk + 1) * CHUNK);
        let add = |a: [u64; 8], b: [u64; 8]| std::array::from_fn(|token| a[token] + b[token]);
        let frequencies =
            checks::frequencies((0..200).into_par_iter().map(draws).reduce(|| [0; 8], add));
        let (g, (_, high)) = (frequencies.g(), frequencies.limits());
        println!("{name}: G = {g:.1} of 20,000,000 draws, limit {high:.1}");
        assert_eq!(g > high, name != "none", "{name}");
    }
}
