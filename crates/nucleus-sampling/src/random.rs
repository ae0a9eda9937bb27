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
