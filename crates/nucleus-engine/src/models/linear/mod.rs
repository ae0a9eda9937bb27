//! Matrices of weights in the types of a GGUF file, and products with them.
//!
//! Every output value is one dot product, computed in an order that depends on the matrix alone: a row of activations
//! gives the same bits alone and in a batch of any size.
//!
//! Q8_0, F32, F16, BF16 and, on x86-64, Q4_0, Q4_K and Q6_K have kernels here ([`q8`], [`float`], [`bytes`]); the other types
//! are multiplied by candle, with the path that treats each row by itself. (candle has two more: repacked kernels, which take
//! Q6_K only above one row and round differently there, and for float types a matrix product that differs from its
//! matrix-vector product.)

mod bytes;
mod float;
mod lanes;
mod q8;
mod tiles;

use candle_core::quantized::{GgmlDType, QTensor, QuantizedType};
use candle_core::{CpuStorage, Result};
use rayon::prelude::*;

use self::bytes::{ByteActivations, BytePanels, Format};
use self::float::FloatPanels;
#[cfg(target_arch = "x86_64")]
pub(super) use self::lanes::Vnni;
pub(super) use self::lanes::prefetch;
use self::q8::{Q8Activations, Q8Panels};

/// Outputs that a kernel computes side by side, one in each lane of two vector registers.
const PANEL: usize = 16;

/// A matrix `[outputs, inputs]` of weights.
pub(super) struct Linear {
    outputs: usize,
    inputs: usize,
    weights: Weights,
}

enum Weights {
    Q8(Q8Panels),
    Bytes(BytePanels),
    Float(FloatPanels),
    Ggml(Box<dyn QuantizedType>),
}

/// Bytes that a matrix `[outputs, inputs]` takes as a [`Linear`].
pub(super) fn held_bytes(dtype: GgmlDType, shape: [usize; 2]) -> u64 {
    let [outputs, inputs] = shape.map(|dim| dim as u64);
    let padded = outputs.next_multiple_of(PANEL as u64) * inputs;
    match dtype {
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::Q8_0 => {
            padded / dtype.block_size() as u64 * dtype.type_size() as u64
        }
        _ if let Some(format) = byte_format(dtype) => {
            padded / format.activation_block() as u64 * format.held_bytes() as u64
        }
        _ => outputs * inputs / dtype.block_size() as u64 * dtype.type_size() as u64,
    }
}

/// The types that [`bytes`] multiplies, where its kernels are faster than candle's.
fn byte_format(dtype: GgmlDType) -> Option<Format> {
    match dtype {
        _ if !cfg!(target_arch = "x86_64") => None,
        GgmlDType::Q4_0 => Some(Format::Q4_0),
        GgmlDType::Q4K => Some(Format::Q4K),
        GgmlDType::Q6K => Some(Format::Q6K),
        _ => None,
    }
}

impl Linear {
    /// Whether [`from_bytes`](Self::from_bytes) takes tensors of this type.
    pub(super) fn has_kernel(dtype: GgmlDType) -> bool {
        matches!(
            dtype,
            GgmlDType::Q8_0 | GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16
        ) || byte_format(dtype).is_some()
    }

    /// A matrix of a type that has a kernel here, from its bytes in the file.
    pub(super) fn from_bytes(dtype: GgmlDType, shape: [usize; 2], data: &[u8]) -> Self {
        let [outputs, inputs] = shape;
        let weights = match dtype {
            GgmlDType::Q8_0 => Weights::Q8(Q8Panels::new(data, inputs)),
            GgmlDType::F32 => Weights::Float(FloatPanels::f32(data, inputs)),
            GgmlDType::F16 => Weights::Float(FloatPanels::f16(data, inputs)),
            GgmlDType::BF16 => Weights::Float(FloatPanels::bf16(data, inputs)),
            other => match byte_format(other) {
                Some(format) => Weights::Bytes(BytePanels::new(format, data, inputs)),
                None => unreachable!("{other:?} has no kernel"),
            },
        };
        Self {
            outputs,
            inputs,
            weights,
        }
    }

    /// A matrix of any type.
    pub(super) fn from_qtensor(tensor: &QTensor) -> Result<Self> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        let (dtype, data) = (tensor.dtype(), tensor.data()?);
        if Self::has_kernel(dtype) {
            return Ok(Self::from_bytes(dtype, [outputs, inputs], &data));
        }
        Ok(Self {
            outputs,
            inputs,
            weights: Weights::Ggml(dtype.from_data(data)),
        })
    }

    /// One row of weights, dequantised into `row`: the embedding of a token.
    pub(super) fn weights_of(&self, output: usize, row: &mut [f32]) -> Result<()> {
        match &self.weights {
            Weights::Q8(panels) => panels.weights_of(output, row),
            Weights::Bytes(panels) => panels.weights_of(output, row),
            Weights::Float(panels) => panels.weights_of(output, row),
            Weights::Ggml(blocks) => {
                let storage = blocks.embedding(&[output as u32], self.outputs, self.inputs)?;
                let CpuStorage::F32(values) = storage else {
                    unreachable!("candle dequantises to f32")
                };
                row.copy_from_slice(&values);
            }
        }
        Ok(())
    }
}

/// A product: the matrix, and where its `[rows, outputs]` go.
pub(super) struct Product<'a> {
    /// The weights.
    pub(super) matrix: &'a Linear,
    /// The result, `[rows, outputs]`.
    pub(super) output: &'a mut [f32],
}

/// Multiplies the rows of `input` (`[rows, inputs]`) with several matrices at once: `output = input · matrixᵀ`.
///
/// The matrices share the quantised input and one round of work for the threads.
pub(super) fn multiply(input: &[f32], products: &mut [Product<'_>]) -> Result<()> {
    let quantized = Quantized::new(input, products);
    let mut tasks = Vec::new();
    for Product { matrix, output } in products {
        let rows = output.len() / matrix.outputs;
        debug_assert_eq!(rows * matrix.inputs, input.len());
        let operands = match &matrix.weights {
            Weights::Q8(panels) => Operands::Q8(panels, quantized.words()),
            Weights::Bytes(panels) => {
                Operands::Bytes(panels, quantized.bytes(panels.activation_block()))
            }
            Weights::Float(panels) => Operands::Float(panels, input),
            Weights::Ggml(blocks) => {
                blocks.matmul_t((rows, matrix.inputs, matrix.outputs), input, output)?;
                continue;
            }
        };
        let width = panels_per_task(rows * matrix.inputs, matrix.outputs);
        tasks.extend(
            split_columns(output, matrix.outputs, width * PANEL)
                .into_iter()
                .enumerate()
                .map(|(index, output)| Task {
                    operands,
                    first_panel: index * width,
                    output,
                }),
        );
    }
    match tasks.as_mut_slice() {
        [task] => task.run(),
        tasks => tasks.par_iter_mut().with_max_len(1).for_each(Task::run),
    }
    Ok(())
}

/// The input, rounded in the ways that the matrices need.
#[derive(Default)]
struct Quantized {
    words: Option<Q8Activations>,
    bytes: Vec<ByteActivations>,
}

impl Quantized {
    fn new(input: &[f32], products: &[Product<'_>]) -> Self {
        let mut quantized = Self::default();
        for Product { matrix, .. } in products {
            match &matrix.weights {
                Weights::Q8(_) => {
                    quantized
                        .words
                        .get_or_insert_with(|| Q8Activations::new(input, matrix.inputs));
                }
                Weights::Bytes(panels) => {
                    let block = panels.activation_block();
                    if quantized.bytes.iter().all(|bytes| bytes.block() != block) {
                        let bytes = ByteActivations::new(input, matrix.inputs, block);
                        quantized.bytes.push(bytes);
                    }
                }
                Weights::Float(_) | Weights::Ggml(_) => {}
            }
        }
        quantized
    }

    fn words(&self) -> &Q8Activations {
        self.words
            .as_ref()
            .expect("they were rounded for this matrix")
    }

    fn bytes(&self, block: usize) -> &ByteActivations {
        let mut bytes = self.bytes.iter();
        bytes
            .find(|bytes| bytes.block() == block)
            .expect("they were rounded for this matrix")
    }
}

/// Multiplications that a task should have at least: about a microsecond of work.
const PRODUCTS_PER_TASK: usize = 64 * 1024;

/// Tasks a thread should have at most, so that fast threads can take over from slow ones.
const TASKS_PER_THREAD: usize = 32;

/// Panels of a task: enough to be worth a hand-over, few enough to share the matrix out.
fn panels_per_task(products_per_output: usize, outputs: usize) -> usize {
    let by_work = PRODUCTS_PER_TASK.div_ceil(products_per_output * PANEL);
    let by_share = outputs
        .div_ceil(PANEL)
        .div_ceil(rayon::current_num_threads() * TASKS_PER_THREAD);
    by_work.max(by_share)
}

/// Cuts `[rows, row_len]` into pieces of `width` columns: for each piece, its part of every row.
fn split_columns(values: &mut [f32], row_len: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = values.len() / row_len;
    let mut pieces: Vec<Vec<&mut [f32]>> = Vec::new();
    pieces.resize_with(row_len.div_ceil(width), || Vec::with_capacity(rows));
    for row in values.chunks_exact_mut(row_len) {
        for (piece, part) in pieces.iter_mut().zip(row.chunks_mut(width)) {
            piece.push(part);
        }
    }
    pieces
}

/// Splits the first `count` off a slice.
fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    rest.split_off_mut(..count)
        .expect("there are as many as were made")
}

/// What a task multiplies.
#[derive(Clone, Copy)]
enum Operands<'a> {
    Q8(&'a Q8Panels, &'a Q8Activations),
    Bytes(&'a BytePanels, &'a ByteActivations),
    Float(&'a FloatPanels, &'a [f32]),
}

/// Some panels of a matrix, for all rows.
struct Task<'a> {
    operands: Operands<'a>,
    first_panel: usize,
    /// The task's columns of every row.
    output: Vec<&'a mut [f32]>,
}

impl Task<'_> {
    fn run(&mut self) {
        match self.operands {
            Operands::Q8(panels, activations) => {
                panels.multiply(self.first_panel, activations, &mut self.output);
            }
            Operands::Bytes(panels, activations) => {
                panels.multiply(self.first_panel, activations, &mut self.output);
            }
            Operands::Float(panels, input) => {
                panels.multiply(self.first_panel, input, &mut self.output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;
    use candle_core::{Device, Tensor};

    fn types() -> impl Iterator<Item = GgmlDType> {
        TensorType::supported().filter_map(TensorType::candle_type)
    }

    const INPUTS: usize = 512;
    /// Not a multiple of any kernel's width.
    const OUTPUTS: usize = 77;
    const ROWS: usize = 41;

    /// Numbers from -1 to 1 without a pattern.
    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let scramble = |index: u64| {
            (index + seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_mul(seed | 1)
        };
        (0..len as u64)
            .map(|index| (scramble(index) >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    fn tensor(dtype: GgmlDType) -> QTensor {
        let weights =
            Tensor::from_vec(noise(OUTPUTS * INPUTS, 1), (OUTPUTS, INPUTS), &Device::Cpu).unwrap();
        QTensor::quantize(&weights, dtype).unwrap()
    }

    fn product(matrix: &Linear, input: &[f32]) -> Vec<f32> {
        let mut output = vec![f32::NAN; input.len() / INPUTS * OUTPUTS];
        multiply(
            input,
            &mut [Product {
                matrix,
                output: &mut output,
            }],
        )
        .unwrap();
        output
    }

    #[test]
    fn every_type_multiplies_with_its_dequantised_weights() {
        let input = noise(ROWS * INPUTS, 3);
        for dtype in types() {
            let tensor = tensor(dtype);
            let weights: Vec<f32> = tensor
                .dequantize(&Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let output = product(&Linear::from_qtensor(&tensor).unwrap(), &input);
            // candle rounds activations to 8 bits, so they are off by up to 1/254 of the largest; such errors add up like
            // a random walk. Q8_0's have 16 bits here.
            let bound = match dtype {
                GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => 1e-4,
                GgmlDType::Q8_0 => 1e-3,
                _ => 0.15,
            };
            for (index, value) in output.iter().enumerate() {
                let (row, column) = (
                    &input[index / OUTPUTS * INPUTS..],
                    &weights[index % OUTPUTS * INPUTS..],
                );
                let exact: f64 = row
                    .iter()
                    .zip(&column[..INPUTS])
                    .map(|(&x, &w)| f64::from(x) * f64::from(w))
                    .sum();
                assert!(
                    (f64::from(*value) - exact).abs() < bound,
                    "{dtype:?}: {value} is not {exact}"
                );
            }
        }
    }

    #[test]
    fn every_type_gives_a_row_the_same_bits_in_any_batch() {
        let input = noise(ROWS * INPUTS, 5);
        for dtype in types() {
            let matrix = Linear::from_qtensor(&tensor(dtype)).unwrap();
            let together = product(&matrix, &input);
            for rows in [1, 2, 3, 4, 5, 16, 31, 32, 33] {
                for (part, output) in input
                    .chunks(rows * INPUTS)
                    .zip(together.chunks(rows * OUTPUTS))
                {
                    let same = product(&matrix, part)
                        .iter()
                        .zip(output)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{dtype:?} in batches of {rows}");
                }
            }
        }
    }

    #[test]
    fn weights_of_an_output_are_its_dequantised_row() {
        for dtype in types() {
            let tensor = tensor(dtype);
            let weights: Vec<Vec<f32>> =
                tensor.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
            let matrix = Linear::from_qtensor(&tensor).unwrap();
            for output in [0, 8, OUTPUTS - 1] {
                let mut row = vec![0.0; INPUTS];
                matrix.weights_of(output, &mut row).unwrap();
                assert_eq!(row, weights[output], "{dtype:?}");
            }
        }
    }

    #[test]
    fn products_of_the_same_input_do_not_mix() {
        let matrices = [GgmlDType::Q8_0, GgmlDType::F16, GgmlDType::Q4K]
            .map(|dtype| Linear::from_qtensor(&tensor(dtype)).unwrap());
        let input = noise(3 * INPUTS, 7);
        let mut outputs = [const { Vec::new() }; 3];
        let products = matrices.iter().zip(&mut outputs).map(|(matrix, output)| {
            output.resize(3 * OUTPUTS, f32::NAN);
            Product { matrix, output }
        });
        multiply(&input, &mut products.collect::<Vec<_>>()).unwrap();
        for (matrix, output) in matrices.iter().zip(&outputs) {
            assert_eq!(*output, product(matrix, &input));
        }
    }

    #[test]
    fn columns_are_cut_out_of_every_row() {
        let mut values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let pieces = split_columns(&mut values, 3, 2);
        assert_eq!(
            pieces,
            [
                vec![&mut [1.0, 2.0][..], &mut [4.0, 5.0]],
                vec![&mut [3.0][..], &mut [6.0]]
            ]
        );
    }

    #[test]
    fn held_bytes_are_those_of_the_panels() {
        // 77 outputs make 5 panels of 16
        let bytes = |dtype| held_bytes(dtype, [OUTPUTS, INPUTS]);
        assert_eq!(bytes(GgmlDType::F32), 80 * 512 * 4);
        assert_eq!(bytes(GgmlDType::F16), 80 * 512 * 2);
        assert_eq!(bytes(GgmlDType::Q8_0), 80 * 512 / 32 * 34);
        assert_eq!(bytes(GgmlDType::Q5K), 77 * 512 / 256 * 176);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(bytes(GgmlDType::Q4_0), 80 * 512 / 32 * 18);
            assert_eq!(bytes(GgmlDType::Q4K), 80 * 512 / 256 * 148);
            assert_eq!(bytes(GgmlDType::Q6K), 80 * 512 / 256 * 210);
        }
    }
}
