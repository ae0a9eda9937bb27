//! The C functions: the kernels' (`cuda/include/decoder_kernels.h`) and those of the CUDA runtime that a decoder needs. No logic.

use std::ffi::{c_int, c_void};

/// `cudaMemcpyHostToDevice`.
pub(super) const HOST_TO_DEVICE: c_int = 1;
/// `cudaMemcpyDeviceToHost`.
pub(super) const DEVICE_TO_HOST: c_int = 2;
/// `cudaMemcpyDeviceToDevice`.
pub(super) const DEVICE_TO_DEVICE: c_int = 3;
/// `cudaStreamNonBlocking`: does not wait for the legacy default stream.
pub(super) const STREAM_NON_BLOCKING: u32 = 1;
/// `cudaEventDisableTiming`.
pub(super) const EVENT_DISABLE_TIMING: u32 = 2;
/// `cudaStreamCaptureModeThreadLocal`: other threads may allocate meanwhile.
pub(super) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// A matrix of weights as the device holds it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NucleusMatrix {
    pub(super) data: *const c_void,
    pub(super) kind: u32,
    pub(super) outputs: u32,
    pub(super) inputs: u32,
}

/// `output = input · matrixᵀ + bias`.
#[repr(C)]
pub(super) struct NucleusProduct {
    pub(super) matrix: NucleusMatrix,
    pub(super) bias: *const f32,
    pub(super) output: *mut f32,
    pub(super) output_stride: u64,
}

/// `hidden += norm(y)`, `normed = norm(hidden)`.
#[repr(C)]
pub(super) struct NucleusAddNorm {
    pub(super) hidden: *mut f32,
    pub(super) y: *const f32,
    pub(super) post_norm: *const f32,
    pub(super) next_norm: *const f32,
    pub(super) normed: *mut f32,
    pub(super) eps: f32,
    pub(super) rows: u32,
    pub(super) width: u32,
}

/// Where the rows of a step stand.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NucleusRows {
    pub(super) positions: *const u32,
    pub(super) sequences: *const u32,
    pub(super) block_tables: *const u32,
    pub(super) blocks_per_table: u32,
    pub(super) rows: u32,
}

/// The cache of one layer.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NucleusCache {
    pub(super) keys: *mut c_void,
    pub(super) values: *mut c_void,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
}

/// Tokens that were just drawn, for the rows that take them.
#[repr(C)]
pub(super) struct NucleusTakeTokens {
    pub(super) tokens: *mut u32,
    pub(super) positions: *mut u32,
    pub(super) block_tables: *mut u32,
    pub(super) sequences: *const u32,
    pub(super) drawn_rows: *const u32,
    pub(super) drawn: *const u32,
    pub(super) drawn_stride: u32,
    pub(super) status_offset: u32,
    pub(super) stopped: u32,
    pub(super) rows: u32,
    pub(super) blocks_per_table: u32,
    pub(super) spare_block: u32,
    pub(super) vocab_size: u32,
}

/// Norms of heads, rotation, cache write.
#[repr(C)]
pub(super) struct NucleusRotateStore {
    pub(super) rows: NucleusRows,
    pub(super) cache: NucleusCache,
    pub(super) query: *mut f32,
    pub(super) key: *mut f32,
    pub(super) value: *const f32,
    pub(super) heads: u32,
    pub(super) query_norm: *const f32,
    pub(super) key_norm: *const f32,
    pub(super) eps: f32,
    pub(super) rotations: *const f32,
    pub(super) pairs: u32,
    pub(super) neighbours: u32,
}

/// Attention over the cache.
#[repr(C)]
pub(super) struct NucleusAttention {
    pub(super) rows: NucleusRows,
    pub(super) cache: NucleusCache,
    pub(super) query: *const f32,
    pub(super) output: *mut f32,
    pub(super) heads: u32,
    pub(super) scale: f32,
    pub(super) soft_cap: f32,
    pub(super) window: u32,
    /// Pairs of the first row and the number of rows.
    pub(super) tiles: *const [u32; 2],
    pub(super) tile_count: u32,
    pub(super) max_context: u32,
    pub(super) workspace: *mut c_void,
    pub(super) workspace_bytes: usize,
}

unsafe extern "C" {
    pub(super) fn atexit(function: extern "C" fn()) -> c_int;

    // Of numbers alone.
    pub(super) safe fn nucleus_matrix_bytes(kind: u32, outputs: u32, inputs: u32) -> usize;
    pub(super) safe fn nucleus_linear_workspace(rows: u32, inputs: u32) -> usize;
    pub(super) safe fn nucleus_cache_bytes(blocks: u32, kv_heads: u32, head_dim: u32) -> usize;
    pub(super) safe fn nucleus_attention_tile_rows(heads_per_kv_head: u32, head_dim: u32) -> u32;
    pub(super) safe fn nucleus_attention_workspace(
        rows: u32,
        heads: u32,
        head_dim: u32,
        max_context: u32,
    ) -> usize;

    pub(super) fn nucleus_pack_matrix(
        kind: u32,
        outputs: u32,
        inputs: u32,
        file_bytes: *const c_void,
        held: *mut c_void,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_linear(
        input: *const f32,
        rows: u32,
        products: *const NucleusProduct,
        count: u32,
        workspace: *mut c_void,
        workspace_bytes: usize,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_embed(
        matrix: NucleusMatrix,
        tokens: *const u32,
        rows: u32,
        scale: f32,
        output: *mut f32,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_rms_norm(
        x: *const f32,
        weight: *const f32,
        eps: f32,
        rows: u32,
        width: u32,
        output: *mut f32,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_add_norm(call: *const NucleusAddNorm, stream: *mut c_void) -> c_int;
    pub(super) fn nucleus_gated(
        gate: *mut f32,
        up: *const f32,
        count: u64,
        activation: u32,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_gather_rows(
        x: *const f32,
        rows: *const u32,
        count: u32,
        width: u32,
        output: *mut f32,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_soft_cap(
        x: *mut f32,
        cap: f32,
        rows: u32,
        width: u32,
        stride: u64,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_rotations(
        positions: *const u32,
        rows: u32,
        frequencies: *const f64,
        pairs: u32,
        magnitude: f64,
        rotations: *mut f32,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_rotate_store(
        call: *const NucleusRotateStore,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn nucleus_attention(call: *const NucleusAttention, stream: *mut c_void) -> c_int;
    pub(super) fn nucleus_take_tokens(call: *const NucleusTakeTokens, stream: *mut c_void)
    -> c_int;

    pub(super) safe fn cudaSetDevice(device: c_int) -> c_int;
    pub(super) fn cudaMalloc(pointer: *mut *mut c_void, bytes: usize) -> c_int;
    pub(super) fn cudaFree(pointer: *mut c_void) -> c_int;
    pub(super) fn cudaMemsetAsync(
        pointer: *mut c_void,
        value: c_int,
        bytes: usize,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn cudaMallocHost(pointer: *mut *mut c_void, bytes: usize) -> c_int;
    pub(super) fn cudaFreeHost(pointer: *mut c_void) -> c_int;
    pub(super) fn cudaMemcpyAsync(
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn cudaMemcpy2DAsync(
        to: *mut c_void,
        to_pitch: usize,
        from: *const c_void,
        from_pitch: usize,
        width: usize,
        height: usize,
        kind: c_int,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn cudaStreamCreateWithFlags(stream: *mut *mut c_void, flags: u32) -> c_int;
    pub(super) fn cudaStreamDestroy(stream: *mut c_void) -> c_int;
    pub(super) fn cudaStreamSynchronize(stream: *mut c_void) -> c_int;
    pub(super) fn cudaStreamBeginCapture(stream: *mut c_void, mode: c_int) -> c_int;
    pub(super) fn cudaStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) -> c_int;
    pub(super) fn cudaGraphInstantiate(
        executable: *mut *mut c_void,
        graph: *mut c_void,
        flags: u64,
    ) -> c_int;
    pub(super) fn cudaGraphLaunch(executable: *mut c_void, stream: *mut c_void) -> c_int;
    pub(super) fn cudaGraphDestroy(graph: *mut c_void) -> c_int;
    pub(super) fn cudaGraphExecDestroy(executable: *mut c_void) -> c_int;
    pub(super) fn cudaEventCreateWithFlags(event: *mut *mut c_void, flags: u32) -> c_int;
    pub(super) fn cudaEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int;
    pub(super) fn cudaEventSynchronize(event: *mut c_void) -> c_int;
    pub(super) fn cudaEventElapsedTime(
        milliseconds: *mut f32,
        start: *mut c_void,
        end: *mut c_void,
    ) -> c_int;
    pub(super) fn cudaEventDestroy(event: *mut c_void) -> c_int;
}
