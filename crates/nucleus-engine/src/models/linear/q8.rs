//! Q8_0: blocks of 32 weights, eight bits each, with a common scale.
//!
//! The activations are rounded to integers too, with a scale for each block, so that a block's dot product is a sum of
//! whole numbers, times two scales. They get 16 bits, since the instruction that multiplies and adds pairs takes 16-bit
//! numbers anyway: 8 bits would be no faster, and would move the logits of a small model by about 0.1, 16 bits by less
//! than 0.001. The sums fit: 32·128·32,767 is below 2^31.

use rayon::prelude::*;

use super::PANEL;
use super::lanes::{self, Lanes, LanesKernel};
use super::take;
use super::tiles::{Columns, Tile, TileProducts, passes};
use crate::models::pages::Pages;
use crate::models::simd::{self, Kernel, Simd, half};

/// Weights in a block.
const BLOCK: usize = 32;
/// Pairs of neighbouring weights in a block: what one multiply-add instruction takes of each output.
const PAIRS: usize = BLOCK / 2;
/// Bytes of a block in a file: an f16 scale and the weights.
const BLOCK_BYTES: usize = 2 + BLOCK;
/// The largest quantised activation.
const LARGEST: f32 = 32_767.0;

/// A block of each of a panel's outputs: pair by pair, output by output.
type Pairs = [[i8; 2 * PANEL]; PAIRS];

/// A matrix in panels of 16 outputs, `[panels, blocks]`; outputs beyond the last are zero.
pub(super) struct Q8Panels {
    /// Blocks in a row of the matrix.
    blocks: usize,
    weights: Pages<Pairs>,
    /// As halves.
    scales: Pages<[u16; PANEL]>,
}

impl Q8Panels {
    /// Rearranges a Q8_0 tensor `[outputs, inputs]`.
    pub(super) fn new(data: &[u8], inputs: usize) -> Self {
        let blocks = inputs / BLOCK;
        let row_bytes = blocks * BLOCK_BYTES;
        let panels = data.len().div_ceil(row_bytes * PANEL);
        let mut weights = Pages::<Pairs>::zeroed(panels * blocks);
        let mut scales = Pages::<[u16; PANEL]>::zeroed(panels * blocks);
        data.par_chunks(row_bytes * PANEL)
            .zip(weights.par_chunks_mut(blocks))
            .zip(scales.par_chunks_mut(blocks))
            .for_each(|((rows, weights), scales)| {
                for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                    fill_lane(lane, row, weights, scales);
                }
            });
        Self {
            blocks,
            weights,
            scales,
        }
    }

    /// One row of weights, dequantised.
    pub(super) fn weights_of(&self, output: usize, row: &mut [f32]) {
        let (panel, lane) = (output / PANEL, output % PANEL);
        let blocks = panel * self.blocks..(panel + 1) * self.blocks;
        let weights = self.weights[blocks.clone()]
            .iter()
            .zip(&self.scales[blocks]);
        for (row, (pairs, scales)) in row.as_chunks_mut::<BLOCK>().0.iter_mut().zip(weights) {
            for (values, pair) in row.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                *values = [pair[2 * lane], pair[2 * lane + 1]]
                    .map(|weight| f32::from(weight) * half(scales[lane]));
            }
        }
    }

    /// Multiplies all rows of activations with the panels from `first_panel` on, as many as `output` has columns for.
    pub(super) fn multiply(
        &self,
        first_panel: usize,
        activations: &Q8Activations,
        output: &mut [&mut [f32]],
    ) {
        lanes::run(Multiply {
            panels: self,
            activations,
            columns: Columns {
                first_panel,
                output,
            },
        });
    }

    /// The blocks of a panel.
    #[inline(always)]
    fn panel(&self, index: usize) -> (&[Pairs], &[[u16; PANEL]]) {
        let blocks = index * self.blocks..(index + 1) * self.blocks;
        (&self.weights[blocks.clone()], &self.scales[blocks])
    }
}

/// Copies a row of a tensor into its lane of a panel.
fn fill_lane(lane: usize, row: &[u8], weights: &mut [Pairs], scales: &mut [[u16; PANEL]]) {
    for ((bytes, pairs), scales) in row
        .as_chunks::<BLOCK_BYTES>()
        .0
        .iter()
        .zip(weights)
        .zip(scales)
    {
        scales[lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
        for (pair, &[first, second]) in pairs.iter_mut().zip(bytes[2..].as_chunks::<2>().0) {
            (pair[2 * lane], pair[2 * lane + 1]) = (first.cast_signed(), second.cast_signed());
        }
    }
}

/// Rows of activations, quantised: `[passes, blocks, rows]`.
pub(super) struct Q8Activations {
    /// Two neighbouring values as 16-bit integers, the first in the low half.
    pairs: Vec<[i32; PAIRS]>,
    scales: Vec<f32>,
}

/// Blocks that a thread quantises at a time.
const BLOCKS_PER_TASK: usize = 512;

impl Q8Activations {
    /// Quantises rows of `inputs` values, a multiple of 32: `scale = max|x| / 32767`, `q = round(x / scale)`, ties to even.
    pub(super) fn new(input: &[f32], inputs: usize) -> Self {
        let count = input.len() / BLOCK;
        let mut activations = Self {
            pairs: vec![[0; PAIRS]; count],
            scales: vec![0.0; count],
        };
        let (mut pairs, mut scales) = (&mut *activations.pairs, &mut *activations.scales);
        for pass in passes(input.len() / inputs) {
            let rows = pass.len();
            let input = &input[pass.start * inputs..pass.end * inputs];
            let blocks = rows * inputs / BLOCK;
            let pass = take(&mut pairs, blocks).par_chunks_mut(rows);
            pass.zip(take(&mut scales, blocks).par_chunks_mut(rows))
                .with_min_len(BLOCKS_PER_TASK.div_ceil(rows))
                .enumerate()
                .for_each(|(block, (pairs, scales))| {
                    simd::run(Quantize {
                        input: &input[block * BLOCK..],
                        inputs,
                        pairs,
                        scales,
                    });
                });
        }
        activations
    }
}

/// A block of each row of a pass.
struct Quantize<'a> {
    /// From the first row's block on.
    input: &'a [f32],
    inputs: usize,
    pairs: &'a mut [[i32; PAIRS]],
    scales: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.input.chunks(self.inputs).map(|row| &row[..BLOCK]);
        for ((values, pairs), scale) in rows.zip(self.pairs).zip(self.scales) {
            let max = largest_magnitude(values);
            let inverse = if max > 0.0 { LARGEST / max } else { 0.0 };
            for (pair, values) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
                let [low, high] = values.map(|value| (value * inverse).round_ties_even() as i32);
                *pair = low & 0xffff | high << 16;
            }
            *scale = max / LARGEST;
        }
    }
}

/// `max |x|`; NaN if a value is NaN, so that it is not lost.
///
/// Without the sign bit, the bits of a float are in the order of its values, with NaN above infinity.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(
        values
            .iter()
            .fold(0, |max, value| max.max(value.abs().to_bits())),
    )
}

struct Multiply<'a, 'b> {
    panels: &'a Q8Panels,
    activations: &'a Q8Activations,
    columns: Columns<'a, 'b>,
}

impl LanesKernel for Multiply<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.columns.fill(lanes, &(self.panels, self.activations));
    }
}

impl TileProducts for (&Q8Panels, &Q8Activations) {
    #[inline(always)]
    fn tile<L: Lanes, const ROWS: usize>(
        &self,
        lanes: L,
        panel: usize,
        tile: Tile,
    ) -> [[f32; PANEL]; ROWS] {
        let (panels, activations) = self;
        let (weights, weight_scales) = panels.panel(panel);
        let pairs = tile.pass(&activations.pairs, panels.blocks);
        let scales = tile.pass(&activations.scales, panels.blocks);
        let mut totals = [[0.0; PANEL]; ROWS];
        for (block, (weights, weight_scales)) in weights.iter().zip(weight_scales).enumerate() {
            let pairs: &[_; ROWS] = tile.at(pairs, block);
            let mut sums = [lanes.splat(0); ROWS];
            for (pair, weights) in weights.iter().enumerate() {
                let weights = lanes.widen(weights);
                for row in 0..ROWS {
                    sums[row] = lanes.add_pair(sums[row], weights, pairs[row][pair]);
                }
            }
            let weight_scales = lanes.halves(weight_scales);
            let scales: &[_; ROWS] = tile.at(scales, block);
            for row in 0..ROWS {
                let sums = lanes.numbers(sums[row]);
                for lane in 0..PANEL {
                    let scale = weight_scales[lane] * scales[row];
                    totals[row][lane] =
                        lanes.multiply_add(sums[lane] as f32, scale, totals[row][lane]);
                }
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// A Q8_0 tensor of one block a row: the scale and the weights of each output.
    fn tensor(rows: &[(f32, [i8; BLOCK])]) -> Vec<u8> {
        let bytes = rows.iter().flat_map(|(scale, weights)| {
            let scale = f16::from_f32(*scale).to_le_bytes();
            scale.into_iter().chain(weights.map(i8::cast_unsigned))
        });
        bytes.collect()
    }

    fn multiply(panels: &Q8Panels, input: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
        let mut output = vec![f32::NAN; rows * outputs];
        let mut columns: Vec<&mut [f32]> = output.chunks_exact_mut(outputs).collect();
        let activations = Q8Activations::new(input, input.len() / rows);
        panels.multiply(0, &activations, &mut columns);
        output
    }

    #[test]
    fn a_block_is_a_sum_of_integers_times_two_scales() {
        let mut weights = [0; BLOCK];
        (weights[0], weights[1], weights[31]) = (10, -128, 1);
        let panels = Q8Panels::new(&tensor(&[(0.5, weights), (2.0, [1; BLOCK])]), BLOCK);
        // max|x| = 32767, so the scale is 1 and the values stay whole
        let mut input = [0.0; BLOCK];
        (input[0], input[1], input[31]) = (32_767.0, -3.0, 5.0);
        let output = multiply(&panels, &input, 1, 2);
        assert_eq!(output, [0.5 * (327_670.0 + 384.0 + 5.0), 2.0 * 32_769.0]);
    }

    #[test]
    fn the_largest_block_does_not_overflow() {
        let panels = Q8Panels::new(&tensor(&[(1.0, [-128; BLOCK]), (1.0, [127; BLOCK])]), BLOCK);
        let output = multiply(&panels, &[-2.0; BLOCK], 1, 2);
        assert_eq!(output, [128.0 * 64.0, -127.0 * 64.0]);
    }

    #[test]
    fn activations_round_to_the_nearest_even() {
        let mut input = [0.0; BLOCK];
        (input[0], input[1], input[2], input[3]) = (32_767.0, 0.5, 1.5, -2.5);
        let activations = Q8Activations::new(&input, BLOCK);
        assert_eq!(activations.pairs[0][..2], [32_767, 2 | -2 << 16]);
        assert_eq!(activations.scales, [1.0]);
    }

    #[test]
    fn a_block_of_zeros_has_scale_zero() {
        let activations = Q8Activations::new(&[0.0; BLOCK], BLOCK);
        assert_eq!(
            (activations.pairs[0], activations.scales[0]),
            ([0; PAIRS], 0.0)
        );
    }

    #[test]
    fn a_value_that_is_not_finite_stays_visible() {
        let panels = Q8Panels::new(&tensor(&[(1.0, [1; BLOCK])]), BLOCK);
        for defect in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = [1.0; BLOCK];
            input[7] = defect;
            assert!(multiply(&panels, &input, 1, 1)[0].is_nan());
        }
    }

    #[test]
    fn weights_of_an_output_are_dequantised() {
        let second: [i8; BLOCK] = std::array::from_fn(|i| i as i8 - 16);
        let panels = Q8Panels::new(&tensor(&[(1.0, [3; BLOCK]), (0.5, second)]), BLOCK);
        let mut row = [0.0; BLOCK];
        panels.weights_of(1, &mut row);
        assert_eq!((row[0], row[1], row[16], row[31]), (-8.0, -7.5, 0.0, 7.5));
    }
}
