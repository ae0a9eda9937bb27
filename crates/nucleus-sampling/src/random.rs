//! Counter-based random numbers: a pure function of the request's seed and the token's position.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// What a random number is for; each purpose has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The choice of the token.
    Draw = 0,
    /// Whether XTC acts.
    Xtc = 1,
}

/// Names one random number of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// 0-based index of the generated token.
    pub position: u32,
    /// What the number is for.
    pub purpose: Purpose,
    /// Which of a prompt's completions.
    pub choice: u32,
    /// How many times generation has been rewound.
    pub attempt: u32,
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut words, mut key) = (counter, key);
    for _ in 0..ROUNDS {
        words = round(words, key);
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    words
}

fn round(words: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (high0, low0) = multiply(MULTIPLIERS[0], words[0]);
    let (high1, low1) = multiply(MULTIPLIERS[1], words[2]);
    [
        high1 ^ words[1] ^ key[0],
        low1,
        high0 ^ words[3] ^ key[1],
        low0,
    ]
}

fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// The 64-bit uniform number of that seed and counter: word 0 of Philox is its low half, word 1 its high half.
///
/// The key is the seed, low half first; the counter words are (position, purpose, choice, attempt).
pub fn uniform(seed: u64, counter: Counter) -> u64 {
    let Counter {
        position,
        purpose,
        choice,
        attempt,
    } = counter;
    let words = philox4x32_10(
        [position, purpose as u32, choice, attempt],
        [seed as u32, (seed >> 32) as u32],
    );
    u64::from(words[1]) << 32 | u64::from(words[0])
}

/// A seed from the operating system's randomness, below 2^53, so that JSON numbers carry it exactly.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0u64) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from Random123 (`kat_vectors`, lines "philox4x32 10"): counter, key, words.
    const KNOWN: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];

    #[test]
    fn philox_gives_the_known_answers() {
        for (counter, key, words) in KNOWN {
            assert_eq!(philox4x32_10(counter, key), words);
        }
    }

    const FIRST: Counter = Counter {
        position: 0,
        purpose: Purpose::Draw,
        choice: 0,
        attempt: 0,
    };

    #[test]
    fn the_uniform_is_the_first_two_words_low_half_first() {
        assert_eq!(uniform(0, FIRST), 0xe169_c58d_6627_e8d5);
    }

    #[test]
    fn the_counter_is_position_purpose_choice_attempt_and_the_key_the_seed() {
        let counter = Counter {
            position: 7,
            purpose: Purpose::Xtc,
            choice: 5,
            attempt: 3,
        };
        let words = philox4x32_10([7, 1, 5, 3], [0x9abc_def0, 0x1234_5678]);
        let expected = u64::from(words[1]) << 32 | u64::from(words[0]);
        assert_eq!(uniform(0x1234_5678_9abc_def0, counter), expected);
    }

    #[test]
    fn every_word_of_the_counter_and_both_halves_of_the_seed_matter() {
        let changed = [
            uniform(1, FIRST),
            uniform(1 << 32, FIRST),
            uniform(
                0,
                Counter {
                    position: 1,
                    ..FIRST
                },
            ),
            uniform(
                0,
                Counter {
                    purpose: Purpose::Xtc,
                    ..FIRST
                },
            ),
            uniform(0, Counter { choice: 1, ..FIRST }),
            uniform(
                0,
                Counter {
                    attempt: 1,
                    ..FIRST
                },
            ),
        ];
        for (index, value) in changed.iter().enumerate() {
            assert_ne!(*value, uniform(0, FIRST));
            assert!(!changed[..index].contains(value));
        }
    }

    #[test]
    fn random_seeds_are_exact_in_json_and_differ() {
        let seeds: Vec<u64> = (0..100).map(|_| random_seed()).collect();
        assert!(seeds.iter().all(|seed| *seed < 1 << 53));
        assert!(seeds.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
