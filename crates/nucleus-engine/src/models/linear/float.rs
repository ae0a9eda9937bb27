//! F32, F16 and BF16 weights, multiplied with f32 activations as they are.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use super::PANEL;
use crate::models::pages::Pages;
use crate::models::simd::{self, Kernel, Portable, Simd};

/// Sums that each output is split into, by the input's index modulo this: a sum has to wait for its last addition, so
/// two take turns.
const PHASES: usize = 2;
/// Rows of activations that share a pass over a panel; more would not fit into the vector registers.
const TILE: usize = 2;

/// A matrix in panels of 16 outputs, `[panels, inputs]`; outputs beyond the last are zero.
pub(super) struct FloatPanels {
    inputs: usize,
    weights: FloatWeights,
}

enum FloatWeights {
    F32(Pages<[f32; PANEL]>),
    /// As bits.
    F16(Pages<[u16; PANEL]>),
    /// As bits.
    Bf16(Pages<[u16; PANEL]>),
}

/// A type of weights.
trait Weight {
    /// A weight as it is held.
    type Bits: Copy + Sync;

    /// The values of one input's weights.
    fn values<S: Simd>(simd: S, weights: &[Self::Bits; PANEL]) -> [f32; PANEL];
}

impl Weight for f32 {
    type Bits = f32;

    #[inline(always)]
    fn values<S: Simd>(_: S, weights: &[f32; PANEL]) -> [f32; PANEL] {
        *weights
    }
}

impl Weight for f16 {
    type Bits = u16;

    #[inline(always)]
    fn values<S: Simd>(simd: S, weights: &[u16; PANEL]) -> [f32; PANEL] {
        simd.halves(weights)
    }
}

impl Weight for bf16 {
    type Bits = u16;

    /// They are the upper half of an f32.
    #[inline(always)]
    fn values<S: Simd>(_: S, weights: &[u16; PANEL]) -> [f32; PANEL] {
        weights.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
}

/// Rearranges the rows of a matrix into panels.
fn panels<const BYTES: usize, W: Pod + Send>(
    data: &[u8],
    inputs: usize,
    read: impl Fn([u8; BYTES]) -> W + Sync,
) -> Pages<[W; PANEL]> {
    let row_bytes = inputs * BYTES;
    let count = data.len().div_ceil(row_bytes * PANEL);
    let mut panels = Pages::<[W; PANEL]>::zeroed(count * inputs);
    data.par_chunks(row_bytes * PANEL)
        .zip(panels.par_chunks_mut(inputs))
        .for_each(|(rows, panel)| {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                for (lanes, bytes) in panel.iter_mut().zip(row.as_chunks::<BYTES>().0) {
                    lanes[lane] = read(*bytes);
                }
            }
        });
    panels
}

impl FloatPanels {
    /// Rearranges an F32 tensor `[outputs, inputs]`.
    pub(super) fn f32(data: &[u8], inputs: usize) -> Self {
        Self {
            inputs,
            weights: FloatWeights::F32(panels(data, inputs, f32::from_le_bytes)),
        }
    }

    /// Rearranges an F16 tensor `[outputs, inputs]`.
    pub(super) fn f16(data: &[u8], inputs: usize) -> Self {
        Self {
            inputs,
            weights: FloatWeights::F16(panels(data, inputs, u16::from_le_bytes)),
        }
    }

    /// Rearranges a BF16 tensor `[outputs, inputs]`.
    pub(super) fn bf16(data: &[u8], inputs: usize) -> Self {
        Self {
            inputs,
            weights: FloatWeights::Bf16(panels(data, inputs, u16::from_le_bytes)),
        }
    }

    /// One row of weights.
    pub(super) fn weights_of(&self, output: usize, row: &mut [f32]) {
        match &self.weights {
            FloatWeights::F32(weights) => self.copy_row::<f32>(weights, output, row),
            FloatWeights::F16(weights) => self.copy_row::<f16>(weights, output, row),
            FloatWeights::Bf16(weights) => self.copy_row::<bf16>(weights, output, row),
        }
    }

    fn copy_row<W: Weight>(&self, weights: &[[W::Bits; PANEL]], output: usize, row: &mut [f32]) {
        let panel = &weights[output / PANEL * self.inputs..];
        for (value, lanes) in row.iter_mut().zip(panel) {
            *value = W::values(Portable, lanes)[output % PANEL];
        }
    }

    /// Multiplies all rows of activations with the panels from `first_panel` on, as many as `output` has columns for.
    pub(super) fn multiply(&self, first_panel: usize, input: &[f32], output: &mut [&mut [f32]]) {
        match &self.weights {
            FloatWeights::F32(weights) => {
                self.multiply_with::<f32>(weights, first_panel, input, output);
            }
            FloatWeights::F16(weights) => {
                self.multiply_with::<f16>(weights, first_panel, input, output);
            }
            FloatWeights::Bf16(weights) => {
                self.multiply_with::<bf16>(weights, first_panel, input, output);
            }
        }
    }

    fn multiply_with<W: Weight>(
        &self,
        weights: &[[W::Bits; PANEL]],
        first_panel: usize,
        input: &[f32],
        output: &mut [&mut [f32]],
    ) {
        simd::run(Multiply::<W> {
            weights: &weights[first_panel * self.inputs..],
            inputs: self.inputs,
            input,
            output,
        });
    }
}

struct Multiply<'a, 'b, W: Weight> {
    weights: &'a [[W::Bits; PANEL]],
    inputs: usize,
    /// `[rows, inputs]`
    input: &'a [f32],
    output: &'a mut [&'b mut [f32]],
}

impl<W: Weight> Kernel for Multiply<'_, '_, W> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let rows = self.output.len();
        let panels = self
            .output
            .first()
            .map_or(0, |row| row.len().div_ceil(PANEL));
        for panel in 0..panels {
            let mut row = 0;
            while row + TILE <= rows {
                self.tile::<S, TILE>(simd, panel, row);
                row += TILE;
            }
            for row in row..rows {
                self.tile::<S, 1>(simd, panel, row);
            }
        }
    }
}

impl<W: Weight> Multiply<'_, '_, W> {
    /// `ROWS` rows of activations with one panel.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&mut self, simd: S, panel: usize, first_row: usize) {
        let inputs = self.inputs;
        let (weights, last_weights) =
            self.weights[panel * inputs..(panel + 1) * inputs].as_chunks::<PHASES>();
        let rows: [_; ROWS] = std::array::from_fn(|row| {
            self.input[(first_row + row) * inputs..(first_row + row + 1) * inputs]
                .as_chunks::<PHASES>()
        });
        let mut sums = [[[0.0; PANEL]; PHASES]; ROWS];
        for (step, weights) in weights.iter().enumerate() {
            let values: [_; ROWS] = std::array::from_fn(|row| &rows[row].0[step]);
            for (phase, weights) in weights.iter().enumerate() {
                add_products::<S, W, ROWS>(
                    simd,
                    &mut sums,
                    phase,
                    weights,
                    values.map(|values| values[phase]),
                );
            }
        }
        for (phase, weights) in last_weights.iter().enumerate() {
            let values: [_; ROWS] = std::array::from_fn(|row| rows[row].1[phase]);
            add_products::<S, W, ROWS>(simd, &mut sums, phase, weights, values);
        }
        for (row, [a, b]) in sums.iter().enumerate() {
            let totals: [f32; PANEL] = std::array::from_fn(|lane| a[lane] + b[lane]);
            let columns = &mut self.output[first_row + row][panel * PANEL..];
            let width = columns.len().min(PANEL);
            columns[..width].copy_from_slice(&totals[..width]);
        }
    }
}

/// `sums[row][phase][lane] += weights[lane]·values[row]`.
#[inline(always)]
fn add_products<S: Simd, W: Weight, const ROWS: usize>(
    simd: S,
    sums: &mut [[[f32; PANEL]; PHASES]; ROWS],
    phase: usize,
    weights: &[W::Bits; PANEL],
    values: [f32; ROWS],
) {
    let weights = W::values(simd, weights);
    for row in 0..ROWS {
        for lane in 0..PANEL {
            sums[row][phase][lane] =
                simd.multiply_add(weights[lane], values[row], sums[row][phase][lane]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multiply(panels: &FloatPanels, input: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
        let mut output = vec![f32::NAN; rows * outputs];
        let mut columns: Vec<&mut [f32]> = output.chunks_exact_mut(outputs).collect();
        panels.multiply(0, input, &mut columns);
        output
    }

    /// Weight `i` of output `o` is `o + 1`, times ten to the power of `i`.
    fn weights(outputs: usize, inputs: usize) -> Vec<f32> {
        let weight =
            |output: usize, input: usize| (output + 1) as f32 * 10.0_f32.powi(input as i32);
        (0..outputs * inputs)
            .map(|index| weight(index / inputs, index % inputs))
            .collect()
    }

    #[test]
    fn outputs_beyond_a_panel_and_inputs_beyond_a_step() {
        let data: Vec<u8> = weights(17, 5)
            .iter()
            .flat_map(|weight| weight.to_le_bytes())
            .collect();
        let panels = FloatPanels::f32(&data, 5);
        let input = [
            1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0,
        ];
        let output = multiply(&panels, &input, 3, 17);
        let expected: Vec<f32> = [54_321.0, 1.0, 10_000.0]
            .iter()
            .flat_map(|value| (1..=17).map(move |output| value * output as f32))
            .collect();
        assert_eq!(output, expected);
    }

    #[test]
    fn weights_in_half_precision() {
        let values = [1.5, -0.25, 3.0, 6.0e-8];
        let halves: Vec<u8> = values
            .iter()
            .flat_map(|&value| f16::from_f32(value).to_le_bytes())
            .collect();
        let panels = FloatPanels::f16(&halves, 2);
        assert_eq!(
            multiply(&panels, &[2.0, 4.0], 1, 2),
            [2.0, 6.0 + 4.0 * f16::from_f32(6.0e-8).to_f32()]
        );
        let mut row = [0.0; 2];
        panels.weights_of(0, &mut row);
        assert_eq!(row, [1.5, -0.25]);
    }

    #[test]
    fn weights_in_bfloat16() {
        let brains: Vec<u8> = [1.5, -0.25]
            .iter()
            .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
            .collect();
        let panels = FloatPanels::bf16(&brains, 1);
        assert_eq!(multiply(&panels, &[2.0], 1, 2), [3.0, -0.5]);
    }
}
