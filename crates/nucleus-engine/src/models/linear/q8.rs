//! Q8_0: blocks of 32 weights, eight bits each, with a common scale.
//!
//! The activations are rounded to integers too, with a scale for each block, so that a block's dot product is a sum of
//! whole numbers, times two scales. They get 16 bits, since the instruction that multiplies and adds pairs takes 16-bit
//! numbers anyway: 8 bits would be no faster, and would move the logits of a small model by about 0.1, 16 bits by less
//! than 0.001. The sums fit: 32·128·32,767 is below 2^31.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, __m256i};

use half::f16;
use rayon::prelude::*;

use super::PANEL;
#[cfg(target_arch = "x86_64")]
use super::lanes::Vnni;
use crate::models::simd::{self, Kernel, multiply_add};

/// Weights in a block.
pub(super) const BLOCK: usize = 32;
/// Pairs of neighbouring weights in a block: what one multiply-add instruction takes of each output.
const PAIRS: usize = BLOCK / 2;
/// Bytes of a block in a file: an f16 scale and the weights.
const BLOCK_BYTES: usize = 2 + BLOCK;
/// The largest quantised activation.
const LARGEST: f32 = 32_767.0;
/// Rows of activations that share a pass over a panel; more would not fit into 16 vector registers.
const TILE: usize = 4;
/// The same for 32 vector registers.
const WIDE_TILE: usize = 8;
/// Rows of activations that stay in the first-level cache while the panels pass by.
const ROWS_PER_PASS: usize = 32;

/// A block of each of a panel's outputs: pair by pair, output by output.
type Pairs = [[i8; 2 * PANEL]; PAIRS];

/// A matrix in panels of 16 outputs, `[panels, blocks]`; outputs beyond the last are zero.
pub(super) struct Q8Panels {
    /// Blocks in a row of the matrix.
    blocks: usize,
    weights: Vec<Pairs>,
    scales: Vec<[f32; PANEL]>,
}

impl Q8Panels {
    /// Rearranges a Q8_0 tensor `[outputs, inputs]`.
    pub(super) fn new(data: &[u8], inputs: usize) -> Self {
        let blocks = inputs / BLOCK;
        let row_bytes = blocks * BLOCK_BYTES;
        let panels = data.len().div_ceil(row_bytes * PANEL);
        let mut weights = vec![[[0; 2 * PANEL]; PAIRS]; panels * blocks];
        let mut scales = vec![[0.0; PANEL]; panels * blocks];
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
                    .map(|weight| f32::from(weight) * scales[lane]);
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
        let product = Multiply {
            panels: self,
            first_panel,
            activations,
            output,
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(vnni) = Vnni::detect() {
            return vnni.vectorize(product.with(vnni));
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return simd.vectorize(product.with(simd));
        }
        product.with(Portable).run_tiles();
    }

    /// The blocks of a panel.
    #[inline(always)]
    fn panel(&self, index: usize) -> (&[Pairs], &[[f32; PANEL]]) {
        let blocks = index * self.blocks..(index + 1) * self.blocks;
        (&self.weights[blocks.clone()], &self.scales[blocks])
    }
}

/// Copies a row of a tensor into its lane of a panel.
fn fill_lane(lane: usize, row: &[u8], weights: &mut [Pairs], scales: &mut [[f32; PANEL]]) {
    for ((bytes, pairs), scales) in row
        .as_chunks::<BLOCK_BYTES>()
        .0
        .iter()
        .zip(weights)
        .zip(scales)
    {
        scales[lane] = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        for (pair, &[first, second]) in pairs.iter_mut().zip(bytes[2..].as_chunks::<2>().0) {
            (pair[2 * lane], pair[2 * lane + 1]) = (first.cast_signed(), second.cast_signed());
        }
    }
}

/// Rows of activations, quantised.
pub(super) struct Q8Activations {
    /// Two neighbouring values as 16-bit integers, the first in the low half.
    pairs: Vec<[i32; PAIRS]>,
    scales: Vec<f32>,
}

impl Q8Activations {
    /// Quantises rows of a multiple of 32 values: `scale = max|x| / 32767`, `q = round(x / scale)`, ties to even.
    pub(super) fn new(input: &[f32]) -> Self {
        let blocks = input.len() / BLOCK;
        let mut activations = Self {
            pairs: vec![[0; PAIRS]; blocks],
            scales: vec![0.0; blocks],
        };
        simd::run(Quantize {
            input,
            activations: &mut activations,
        });
        activations
    }

    /// The blocks of a row.
    #[inline(always)]
    fn row(&self, index: usize, blocks: usize) -> (&[[i32; PAIRS]], &[f32]) {
        let blocks = index * blocks..(index + 1) * blocks;
        (&self.pairs[blocks.clone()], &self.scales[blocks])
    }
}

struct Quantize<'a> {
    input: &'a [f32],
    activations: &'a mut Q8Activations,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Q8Activations { pairs, scales } = self.activations;
        let blocks = self.input.as_chunks::<BLOCK>().0;
        for ((values, pairs), scale) in blocks.iter().zip(pairs).zip(scales) {
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
fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
    f32::from_bits(
        values
            .iter()
            .fold(0, |max, value| max.max(value.abs().to_bits())),
    )
}

/// The instruction at the centre: sums of two products of 16-bit integers.
trait PairProducts: Copy {
    /// `sums[lane] += weights[2·lane]·low + weights[2·lane + 1]·high`, for a pair of activations `[high, low]`.
    fn add(self, sums: [i32; PANEL], weights: &[i8; 2 * PANEL], pair: i32) -> [i32; PANEL];

    /// `a * b + c`.
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32;

    /// Whether there are 32 vector registers.
    const WIDE: bool = false;
}

/// Any processor.
#[derive(Clone, Copy)]
struct Portable;

impl PairProducts for Portable {
    #[inline(always)]
    fn add(self, sums: [i32; PANEL], weights: &[i8; 2 * PANEL], pair: i32) -> [i32; PANEL] {
        let (low, high) = (i32::from(pair as i16), pair >> 16);
        std::array::from_fn(|lane| {
            sums[lane]
                + i32::from(weights[2 * lane]) * low
                + i32::from(weights[2 * lane + 1]) * high
        })
    }

    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        multiply_add::<{ cfg!(target_arch = "aarch64") }>(a, b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl PairProducts for pulp::x86::V3 {
    #[inline(always)]
    fn add(self, sums: [i32; PANEL], weights: &[i8; 2 * PANEL], pair: i32) -> [i32; PANEL] {
        let pair = self.avx._mm256_set1_epi32(pair);
        let add = |sums: __m256i, weights: __m128i| {
            let weights = self.avx2._mm256_cvtepi8_epi16(weights);
            self.avx2
                ._mm256_add_epi32(sums, self.avx2._mm256_madd_epi16(weights, pair))
        };
        let [low_sums, high_sums]: [__m256i; 2] = pulp::cast(sums);
        let [low_weights, high_weights]: [__m128i; 2] = pulp::cast(*weights);
        pulp::cast([add(low_sums, low_weights), add(high_sums, high_weights)])
    }

    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        multiply_add::<true>(a, b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl PairProducts for Vnni {
    const WIDE: bool = true;

    #[inline(always)]
    fn add(self, sums: [i32; PANEL], weights: &[i8; 2 * PANEL], pair: i32) -> [i32; PANEL] {
        self.add_pair(sums, weights, pair)
    }

    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        multiply_add::<true>(a, b, c)
    }
}

struct Multiply<'a, 'b> {
    panels: &'a Q8Panels,
    first_panel: usize,
    activations: &'a Q8Activations,
    output: &'a mut [&'b mut [f32]],
}

impl<'a, 'b> Multiply<'a, 'b> {
    fn with<P: PairProducts>(self, products: P) -> MultiplyWith<'a, 'b, P> {
        MultiplyWith {
            product: self,
            products,
        }
    }
}

struct MultiplyWith<'a, 'b, P> {
    product: Multiply<'a, 'b>,
    products: P,
}

#[cfg(target_arch = "x86_64")]
impl<P: PairProducts> pulp::NullaryFnOnce for MultiplyWith<'_, '_, P> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.run_tiles();
    }
}

impl<P: PairProducts> MultiplyWith<'_, '_, P> {
    /// Walks the rows in passes, the panels in each pass, and tiles of rows in each panel.
    #[inline(always)]
    fn run_tiles(mut self) {
        let rows = self.product.output.len();
        let panels = self
            .product
            .output
            .first()
            .map_or(0, |row| row.len().div_ceil(PANEL));
        for start in (0..rows).step_by(ROWS_PER_PASS) {
            let end = rows.min(start + ROWS_PER_PASS);
            for panel in 0..panels {
                let mut row = start;
                while P::WIDE && row + WIDE_TILE <= end {
                    self.tile::<WIDE_TILE>(panel, row);
                    row += WIDE_TILE;
                }
                while row + TILE <= end {
                    self.tile::<TILE>(panel, row);
                    row += TILE;
                }
                for row in row..end {
                    self.tile::<1>(panel, row);
                }
            }
        }
    }

    /// `ROWS` rows of activations with one panel.
    #[inline(always)]
    fn tile<const ROWS: usize>(&mut self, panel: usize, first_row: usize) {
        let Multiply {
            panels,
            first_panel,
            activations,
            output,
        } = &mut self.product;
        let (weights, weight_scales) = panels.panel(*first_panel + panel);
        let rows: [_; ROWS] =
            std::array::from_fn(|row| activations.row(first_row + row, panels.blocks));
        let mut totals = [[0.0; PANEL]; ROWS];
        for (block, (pairs, scales)) in weights.iter().zip(weight_scales).enumerate() {
            let activations: [_; ROWS] = std::array::from_fn(|row| &rows[row].0[block]);
            let mut sums = [[0; PANEL]; ROWS];
            for (pair, weights) in pairs.iter().enumerate() {
                for row in 0..ROWS {
                    sums[row] = self
                        .products
                        .add(sums[row], weights, activations[row][pair]);
                }
            }
            for row in 0..ROWS {
                let scale = rows[row].1[block];
                totals[row] = std::array::from_fn(|lane| {
                    self.products.multiply_add(
                        sums[row][lane] as f32,
                        scales[lane] * scale,
                        totals[row][lane],
                    )
                });
            }
        }
        for (row, totals) in totals.iter().enumerate() {
            let columns = &mut output[first_row + row][panel * PANEL..];
            let width = columns.len().min(PANEL);
            columns[..width].copy_from_slice(&totals[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        panels.multiply(0, &Q8Activations::new(input), &mut columns);
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
        let activations = Q8Activations::new(&input);
        assert_eq!(activations.pairs[0][..2], [32_767, 2 | -2 << 16]);
        assert_eq!(activations.scales, [1.0]);
    }

    #[test]
    fn a_block_of_zeros_has_scale_zero() {
        let activations = Q8Activations::new(&[0.0; BLOCK]);
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

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #[test]
        fn vector_and_portable_sums_agree(
            weights in prop::array::uniform32(any::<i8>()),
            (low, high) in (-32_767_i32..=32_767, -32_767_i32..=32_767),
        ) {
            let pair = low & 0xffff | high << 16;
            let sums = [1; PANEL];
            if let Some(simd) = pulp::x86::V3::try_new() {
                prop_assert_eq!(simd.add(sums, &weights, pair), Portable.add(sums, &weights, pair));
            }
            if let Some(vnni) = Vnni::detect() {
                prop_assert_eq!(vnni.add(sums, &weights, pair), Portable.add(sums, &weights, pair));
            }
        }
    }
}
