//! Inverse cumulative distribution: which token a number falls on.

use rayon::prelude::*;

use crate::fixed::mulhi64;

/// Place of the first weight with which the inclusive sum exceeds `target`, one weight after another.
pub(super) fn linear(mut weights: impl Iterator<Item = u64>, target: u64) -> Option<usize> {
    let mut sum = 0;
    weights.position(|weight| {
        sum += weight;
        sum > target
    })
}

/// The block within which the inclusive sum first exceeds `target`, and the sum of those before it.
pub(super) fn block(sums: &[u64], target: u64) -> Option<(usize, u64)> {
    let mut before = 0;
    let block = sums.iter().position(|sum| {
        before += sum;
        before > target
    })?;
    Some((block, before - sums[block]))
}

/// A cumulative distribution over integer weights, for many draws from the same weights.
///
/// Building it is one parallel prefix sum over blocks of weights; a draw is a binary search for the block and a scan within it. Both give
/// exactly what a scan of one weight after another would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdf<'a> {
    weights: &'a [u64],
    /// Sums of the weights up to the end of each block.
    ends: Vec<u64>,
}

/// Weights per block.
const BLOCK: usize = 256;

/// Blocks that one task adds up.
const PIECE: usize = 128;

impl<'a> Cdf<'a> {
    /// The distribution with these weights, whose sum must fit 64 bits.
    pub fn new(weights: &'a [u64]) -> Self {
        let blocks = weights.par_chunks(BLOCK).with_min_len(PIECE);
        let mut ends: Vec<u64> = blocks.map(|block| block.iter().sum()).collect();
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        Self { weights, ends }
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The smallest place whose inclusive sum of weights exceeds floor(uniform * total / 2^64); `None` without weight.
    pub fn draw(&self, uniform: u64) -> Option<usize> {
        let target = mulhi64(uniform, self.total());
        let block = self.ends.partition_point(|end| *end <= target);
        let before = block
            .checked_sub(1)
            .map_or(0, |previous| self.ends[previous]);
        let start = block * BLOCK;
        let weights = self.weights.get(start..)?.iter().copied();
        Some(start + linear(weights, target - before)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_scan(weights: &[u64], uniform: u64) -> Option<usize> {
        linear(
            weights.iter().copied(),
            mulhi64(uniform, weights.iter().sum()),
        )
    }

    /// Weights with runs of zeros and a few large ones.
    fn weights(len: usize) -> Vec<u64> {
        let weight = |i: u64| {
            let hash = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            if hash & 3 == 0 {
                0
            } else {
                hash >> (hash & 31)
            }
        };
        (0..len as u64).map(weight).collect()
    }

    #[test]
    fn r3_1_a_draw_falls_where_the_prefix_exceeds_it() {
        // Prefixes 1, 3, 6: a quarter of 2^64 is 1.5 sixths.
        let cdf = Cdf::new(&[1, 2, 3]);
        let at = |quarters: u64| cdf.draw(quarters << 62);
        assert_eq!(
            (at(0), at(1), at(2), at(3)),
            (Some(0), Some(1), Some(2), Some(2))
        );
        assert_eq!(cdf.draw(u64::MAX), Some(2));
    }

    #[test]
    fn r3_1_weights_of_zero_are_never_drawn() {
        let cdf = Cdf::new(&[0, 5, 0, 0, 7, 0]);
        let drawn: Vec<_> = (0..12).map(|i| cdf.draw((u64::MAX / 12) * i + 9)).collect();
        assert_eq!(drawn, [[Some(1); 5].as_slice(), &[Some(4); 7]].concat());
    }

    #[test]
    fn r3_1_nothing_is_drawn_from_nothing() {
        assert_eq!(Cdf::new(&[]).draw(0), None);
        assert_eq!(Cdf::new(&[0; 9]).draw(u64::MAX), None);
        assert_eq!(Cdf::new(&[0; 999]).draw(u64::MAX), None);
    }

    #[test]
    fn r3_1_the_parallel_prefix_sum_equals_the_scan() {
        for len in [1, 255, 256, 257, BLOCK * PIECE, BLOCK * PIECE + 1, 151_936] {
            let weights = weights(len);
            let ends = |end: usize| weights[..len.min(end)].iter().sum::<u64>();
            let expected: Vec<u64> = (1..=len.div_ceil(BLOCK))
                .map(|block| ends(block * BLOCK))
                .collect();
            assert_eq!(Cdf::new(&weights).ends, expected);
        }
    }

    #[test]
    fn r3_1_the_binary_search_equals_the_linear_scan() {
        let weights = weights(100_000);
        let cdf = Cdf::new(&weights);
        for i in 0..500u64 {
            let uniform = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            assert_eq!(cdf.draw(uniform), by_scan(&weights, uniform));
        }
    }

    #[test]
    fn r3_1_every_token_gets_exactly_its_share() {
        // The smallest uniform that draws each token: ceil(2^64 prefix / Z).
        let cdf = Cdf::new(&[3, 1, 0, 4]);
        let first = |before: u64| (u128::from(before) << 64).div_ceil(8) as u64;
        assert_eq!(
            [0, 3, 4].map(|before| cdf.draw(first(before))),
            [Some(0), Some(1), Some(3)]
        );
        assert_eq!(
            [3, 4].map(|before| cdf.draw(first(before) - 1)),
            [Some(0), Some(1)]
        );
    }

    #[test]
    fn r3_1_the_samplers_blocks_lead_to_the_same_place() {
        let weights = weights(5000);
        let sums: Vec<u64> = weights
            .chunks(256)
            .map(|block| block.iter().sum())
            .collect();
        for i in 0..200u64 {
            let target = mulhi64(i.wrapping_mul(0x9E37_79B9_7F4A_7C15), sums.iter().sum());
            let (index, before) = block(&sums, target).expect("some weight");
            let place = linear(weights[index * 256..].iter().copied(), target - before);
            let scanned = linear(weights.iter().copied(), target);
            assert_eq!(place.map(|place| index * 256 + place), scanned);
        }
    }
}
