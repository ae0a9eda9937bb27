//! The decoder's kernels, each with its operands' sizes checked.

use std::ptr;

use nucleus_sampling::cuda::{CudaError, DeviceLogits, DeviceTokens, Dtype};

use super::device::{Stream, check};
use super::memory::Slice;
use super::sys;

/// A type of weights that is computed with as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Kind {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q8_0 = 8,
    Q4K = 12,
    Q6K = 14,
    Bf16 = 30,
}

/// A matrix `[outputs, inputs]` of weights.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) data: Slice<u8>,
    pub(crate) kind: Kind,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

impl Matrix {
    fn raw(&self) -> sys::NucleusMatrix {
        sys::NucleusMatrix {
            data: self.data.address().cast(),
            kind: self.kind as u32,
            outputs: self.outputs as u32,
            inputs: self.inputs as u32,
        }
    }
}

/// Values of a step, `[rows, width]`, row by row at a distance of `stride` values.
#[derive(Debug)]
pub(crate) struct Activations {
    values: Slice<f32>,
    stride: usize,
    rows: usize,
    width: usize,
}

impl Activations {
    /// No rows yet.
    pub(crate) fn new(values: Slice<f32>, stride: usize) -> Self {
        Self {
            values,
            stride,
            rows: 0,
            width: stride,
        }
    }

    /// Most rows that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.values.len() / self.stride
    }

    /// # Panics
    /// If there is no memory for so many rows, or they are wider than their distance.
    pub(crate) fn reshape(&mut self, [rows, width]: [usize; 2]) {
        assert!(
            rows <= self.capacity(),
            "{rows} rows of {}",
            self.capacity()
        );
        assert!(width <= self.stride, "{width} values of {}", self.stride);
        (self.rows, self.width) = (rows, width);
    }

    fn address(&self) -> *mut f32 {
        self.values.address()
    }

    /// The rows as logits, for work that follows on the stream.
    pub(crate) fn as_logits(&self) -> DeviceLogits {
        let (width, stride) = (self.width as u32, self.stride as u64);
        // SAFETY: the memory holds the rows, which work on the stream has written that precedes whatever is queued from now on; they live as
        // long as the model, which `Logits::Device` asks for.
        unsafe { DeviceLogits::new(self.address().cast(), Dtype::F32, width, stride) }
    }

    /// Panics unless the rows follow each other without gaps.
    fn assert_dense(&self, rows: usize, width: usize) {
        assert_eq!(
            [self.rows, self.width],
            [rows, width],
            "shape of activations"
        );
        assert!(rows < 2 || self.stride == width, "rows with gaps");
    }
}

/// The bytes that a matrix takes on the device; 0 if no kernel takes it.
pub(crate) fn matrix_bytes(kind: Kind, [outputs, inputs]: [usize; 2]) -> usize {
    sys::nucleus_matrix_bytes(kind as u32, outputs as u32, inputs as u32)
}

/// Bytes of workspace for products of so many rows of so many values.
pub(crate) fn linear_workspace(rows: usize, inputs: usize) -> usize {
    sys::nucleus_linear_workspace(rows as u32, inputs as u32)
}

/// Bytes that a block of the keys, or of the values, of one layer takes; 0 if no kernel takes heads of that width.
pub(crate) fn cache_block_bytes(kv_heads: usize, head_dim: usize) -> usize {
    sys::nucleus_cache_bytes(1, kv_heads as u32, head_dim as u32)
}

/// Most rows of a tile.
pub(crate) fn tile_rows(heads_per_kv_head: usize, head_dim: usize) -> usize {
    sys::nucleus_attention_tile_rows(heads_per_kv_head as u32, head_dim as u32) as usize
}

/// Bytes of workspace for attention of so many rows over so many positions.
pub(crate) fn attention_workspace(
    [rows, heads, head_dim]: [usize; 3],
    max_context: usize,
) -> usize {
    sys::nucleus_attention_workspace(
        rows as u32,
        heads as u32,
        head_dim as u32,
        max_context as u32,
    )
}

/// Rearranges a matrix from the bytes of a file.
pub(crate) fn pack(stream: &Stream, file: &Slice<u8>, matrix: &Matrix) -> Result<(), CudaError> {
    let shape = [matrix.outputs, matrix.inputs];
    assert!(matrix.data.len() >= matrix_bytes(matrix.kind, shape));
    // SAFETY: the kernel reads the file's bytes and writes the matrix's, which are there.
    let code = unsafe {
        sys::nucleus_pack_matrix(
            matrix.kind as u32,
            matrix.outputs as u32,
            matrix.inputs as u32,
            file.address().cast(),
            matrix.data.address().cast(),
            stream.raw(),
        )
    };
    check("nucleus_pack_matrix", code)
}

/// `output = input · matrixᵀ + bias`.
pub(crate) fn linear<const N: usize>(
    stream: &Stream,
    input: &Activations,
    products: [(&Matrix, Option<&Slice<f32>>, &Activations); N],
    workspace: &Slice<u8>,
) -> Result<(), CudaError> {
    let products = products.map(|(matrix, bias, output)| {
        input.assert_dense(input.rows, matrix.inputs);
        assert_eq!(output.rows, input.rows, "rows of a product");
        assert_eq!(output.width, matrix.outputs, "outputs of a product");
        assert!(bias.is_none_or(|bias| bias.len() == matrix.outputs));
        sys::NucleusProduct {
            matrix: matrix.raw(),
            bias: address_or_null(bias),
            output: output.address(),
            output_stride: output.stride as u64,
        }
    });
    // SAFETY: the products are read on the host before the call returns; the operands' sizes were checked.
    let code = unsafe {
        sys::nucleus_linear(
            input.address(),
            input.rows as u32,
            products.as_ptr(),
            N as u32,
            workspace.address().cast(),
            workspace.len(),
            stream.raw(),
        )
    };
    check("nucleus_linear", code)
}

/// `output[row] = scale · matrix[tokens[row]]`.
pub(crate) fn embed(
    stream: &Stream,
    matrix: &Matrix,
    tokens: &Slice<u32>,
    scale: f32,
    output: &Activations,
) -> Result<(), CudaError> {
    output.assert_dense(output.rows, matrix.inputs);
    assert!(tokens.len() >= output.rows);
    // SAFETY: there are tokens and memory for every row; the host has checked that the tokens are in the matrix.
    let code = unsafe {
        sys::nucleus_embed(
            matrix.raw(),
            tokens.address(),
            output.rows as u32,
            scale,
            output.address(),
            stream.raw(),
        )
    };
    check("nucleus_embed", code)
}

/// `output = norm(x) · weight`.
pub(crate) fn rms_norm(
    stream: &Stream,
    x: &Activations,
    weight: &Slice<f32>,
    eps: f32,
    output: &Activations,
) -> Result<(), CudaError> {
    x.assert_dense(x.rows, weight.len());
    output.assert_dense(x.rows, weight.len());
    // SAFETY: both have the same shape, whose width the weights have.
    let code = unsafe {
        sys::nucleus_rms_norm(
            x.address(),
            weight.address(),
            eps,
            x.rows as u32,
            x.width as u32,
            output.address(),
            stream.raw(),
        )
    };
    check("nucleus_rms_norm", code)
}

/// `hidden += norm(y) · post_norm`, or `y` itself; `normed = norm(hidden) · next_norm`.
pub(crate) fn add_norm(
    stream: &Stream,
    [hidden, y, normed]: [&Activations; 3],
    [post_norm, next_norm]: [Option<&Slice<f32>>; 2],
    eps: f32,
) -> Result<(), CudaError> {
    for activations in [hidden, y, normed] {
        activations.assert_dense(hidden.rows, hidden.width);
    }
    for norm in [post_norm, next_norm].into_iter().flatten() {
        assert_eq!(norm.len(), hidden.width);
    }
    let call = sys::NucleusAddNorm {
        hidden: hidden.address(),
        y: y.address(),
        post_norm: address_or_null(post_norm),
        next_norm: address_or_null(next_norm),
        normed: normed.address(),
        eps,
        rows: hidden.rows as u32,
        width: hidden.width as u32,
    };
    // SAFETY: the call is read before the function returns; all operands have one shape.
    let code = unsafe { sys::nucleus_add_norm(&raw const call, stream.raw()) };
    check("nucleus_add_norm", code)
}

/// `gate = activation(gate) · up`; `gelu` is GELU by tanh, otherwise SiLU.
pub(crate) fn gated(
    stream: &Stream,
    gate: &Activations,
    up: &Activations,
    gelu: bool,
) -> Result<(), CudaError> {
    gate.assert_dense(up.rows, up.width);
    up.assert_dense(gate.rows, gate.width);
    let count = (gate.rows * gate.width) as u64;
    // SAFETY: both hold so many values.
    let code = unsafe {
        sys::nucleus_gated(
            gate.address(),
            up.address(),
            count,
            u32::from(gelu),
            stream.raw(),
        )
    };
    check("nucleus_gated", code)
}

/// `output[i] = x[rows[i]]`.
pub(crate) fn gather_rows(
    stream: &Stream,
    x: &Activations,
    rows: &Slice<u32>,
    output: &Activations,
) -> Result<(), CudaError> {
    x.assert_dense(x.rows, output.width);
    output.assert_dense(rows.len(), x.width);
    // SAFETY: the host has checked that the rows are rows of `x`; the output has as many.
    let code = unsafe {
        sys::nucleus_gather_rows(
            x.address(),
            rows.address(),
            rows.len() as u32,
            x.width as u32,
            output.address(),
            stream.raw(),
        )
    };
    check("nucleus_gather_rows", code)
}

/// `x = cap · tanh(x / cap)`.
pub(crate) fn soft_cap(stream: &Stream, x: &Activations, cap: f32) -> Result<(), CudaError> {
    let (rows, width, stride) = (x.rows as u32, x.width as u32, x.stride as u64);
    // SAFETY: the activations have that shape.
    let code =
        unsafe { sys::nucleus_soft_cap(x.address(), cap, rows, width, stride, stream.raw()) };
    check("nucleus_soft_cap", code)
}

/// `rotations[row][pair]` of `magnitude` and the angle `positions[row] · frequencies[pair]`.
pub(crate) fn rotations(
    stream: &Stream,
    positions: &Slice<u32>,
    frequencies: &Slice<f64>,
    magnitude: f64,
    rotations: &Slice<f32>,
) -> Result<(), CudaError> {
    let (rows, pairs) = (positions.len(), frequencies.len());
    assert!(rotations.len() >= rows * pairs * 2);
    // SAFETY: there is a pair of numbers for every row and pair.
    let code = unsafe {
        sys::nucleus_rotations(
            positions.address(),
            rows as u32,
            frequencies.address(),
            pairs as u32,
            magnitude,
            rotations.address(),
            stream.raw(),
        )
    };
    check("nucleus_rotations", code)
}

/// Where the rows of a step stand.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) positions: Slice<u32>,
    pub(crate) sequences: Slice<u32>,
    pub(crate) block_tables: Slice<u32>,
    pub(crate) blocks_per_table: usize,
}

impl Place {
    fn raw(&self) -> sys::NucleusRows {
        assert_eq!(self.positions.len(), self.sequences.len());
        sys::NucleusRows {
            positions: self.positions.address(),
            sequences: self.sequences.address(),
            block_tables: self.block_tables.address(),
            blocks_per_table: self.blocks_per_table as u32,
            rows: self.positions.len() as u32,
        }
    }
}

/// The keys and values of one layer.
#[derive(Debug)]
pub(crate) struct CacheSlice {
    pub(crate) keys: Slice<u8>,
    pub(crate) values: Slice<u8>,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl CacheSlice {
    fn raw(&self) -> sys::NucleusCache {
        sys::NucleusCache {
            keys: self.keys.address().cast(),
            values: self.values.address().cast(),
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
        }
    }

    fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What happens to queries, keys and values before attention.
pub(crate) struct RotateStore<'a> {
    pub(crate) place: &'a Place,
    pub(crate) cache: &'a CacheSlice,
    pub(crate) query: &'a Activations,
    pub(crate) key: &'a Activations,
    pub(crate) value: &'a Activations,
    pub(crate) query_norm: Option<&'a Slice<f32>>,
    pub(crate) key_norm: Option<&'a Slice<f32>>,
    pub(crate) eps: f32,
    pub(crate) rotations: &'a Slice<f32>,
    pub(crate) pairs: usize,
    pub(crate) neighbours: bool,
}

/// Normalises and rotates heads, and writes keys and values to the cache.
pub(crate) fn rotate_store(stream: &Stream, call: &RotateStore<'_>) -> Result<(), CudaError> {
    let (cache, rows) = (call.cache, call.place.positions.len());
    let heads = call.query.width / cache.head_dim;
    call.query.assert_dense(rows, heads * cache.head_dim);
    call.key.assert_dense(rows, cache.width());
    call.value.assert_dense(rows, cache.width());
    for norm in [call.query_norm, call.key_norm].into_iter().flatten() {
        assert_eq!(norm.len(), cache.head_dim);
    }
    assert!(call.rotations.len() >= rows * call.pairs * 2);
    assert!(call.pairs * 2 <= cache.head_dim);
    let raw = sys::NucleusRotateStore {
        rows: call.place.raw(),
        cache: cache.raw(),
        query: call.query.address(),
        key: call.key.address(),
        value: call.value.address(),
        heads: heads as u32,
        query_norm: address_or_null(call.query_norm),
        key_norm: address_or_null(call.key_norm),
        eps: call.eps,
        rotations: call.rotations.address(),
        pairs: call.pairs as u32,
        neighbours: u32::from(call.neighbours),
    };
    // SAFETY: the call is read before the function returns; its sizes were checked, and by the host that the blocks are the cache's.
    let code = unsafe { sys::nucleus_rotate_store(&raw const raw, stream.raw()) };
    check("nucleus_rotate_store", code)
}

/// Attention of a step's rows.
pub(crate) struct Attend<'a> {
    pub(crate) place: &'a Place,
    pub(crate) cache: &'a CacheSlice,
    pub(crate) query: &'a Activations,
    pub(crate) output: &'a Activations,
    pub(crate) scale: f32,
    /// 0: none.
    pub(crate) soft_cap: f32,
    /// 0: none.
    pub(crate) window: usize,
    /// Pairs of the first row and the number of rows.
    pub(crate) tiles: &'a Slice<[u32; 2]>,
    pub(crate) max_context: usize,
    pub(crate) workspace: &'a Slice<u8>,
}

/// `softmax(scale · q·k) · v`.
pub(crate) fn attend(stream: &Stream, call: &Attend<'_>) -> Result<(), CudaError> {
    let (cache, rows) = (call.cache, call.place.positions.len());
    let heads = call.query.width / cache.head_dim;
    call.query.assert_dense(rows, heads * cache.head_dim);
    call.output.assert_dense(rows, heads * cache.head_dim);
    let raw = sys::NucleusAttention {
        rows: call.place.raw(),
        cache: cache.raw(),
        query: call.query.address(),
        output: call.output.address(),
        heads: heads as u32,
        scale: call.scale,
        soft_cap: call.soft_cap,
        window: call.window as u32,
        tiles: call.tiles.address(),
        tile_count: call.tiles.len() as u32,
        max_context: call.max_context as u32,
        workspace: call.workspace.address().cast(),
        workspace_bytes: call.workspace.len(),
    };
    // SAFETY: the call is read before the function returns; its sizes were checked, and by the host that the blocks are the cache's.
    let code = unsafe { sys::nucleus_attention(&raw const raw, stream.raw()) };
    check("nucleus_attention", code)
}

/// Stands for a row whose token is not taken from those drawn.
pub(crate) const NO_DRAWN_ROW: u32 = u32::MAX;

/// Where rows take the tokens that were just drawn.
pub(crate) struct TakeTokens<'a> {
    /// Token, position and table of each row, which may be changed.
    pub(crate) tokens: &'a Slice<u32>,
    pub(crate) place: &'a Place,
    /// Which of those drawn each row takes, or [`NO_DRAWN_ROW`].
    pub(crate) drawn_rows: &'a Slice<u32>,
    pub(crate) drawn: DeviceTokens,
    pub(crate) vocab_size: usize,
    /// A block that belongs to no sequence.
    pub(crate) spare_block: u32,
}

/// `tokens[row] = drawn[drawn_rows[row]]`; 0 where what was drawn is no token. A row whose sequence ended with its token becomes one that only fills
/// the step up: token 0 at position 0 of the spare block. It must be alone with its table.
pub(crate) fn take_tokens(stream: &Stream, call: &TakeTokens<'_>) -> Result<(), CudaError> {
    let TakeTokens { tokens, place, .. } = *call;
    let rows = tokens.len();
    assert_eq!(rows, call.drawn_rows.len());
    assert_eq!([rows; 2], [place.positions.len(), place.sequences.len()]);
    let raw = sys::NucleusTakeTokens {
        tokens: tokens.address(),
        positions: place.positions.address(),
        block_tables: place.block_tables.address(),
        sequences: place.sequences.address(),
        drawn_rows: call.drawn_rows.address(),
        drawn: call.drawn.address(),
        drawn_stride: call.drawn.stride(),
        status_offset: call.drawn.status_offset(),
        stopped: call.drawn.stopped(),
        rows: rows as u32,
        blocks_per_table: place.blocks_per_table as u32,
        spare_block: call.spare_block,
        vocab_size: call.vocab_size as u32,
    };
    // SAFETY: the call is read before the function returns; its sizes were checked; the host vouches for the numbers of rows and tables, and
    // whoever made `drawn` for its memory.
    let code = unsafe { sys::nucleus_take_tokens(&raw const raw, stream.raw()) };
    check("nucleus_take_tokens", code)
}

fn address_or_null(values: Option<&Slice<f32>>) -> *const f32 {
    values.map_or(ptr::null(), |values| values.address().cast_const())
}
